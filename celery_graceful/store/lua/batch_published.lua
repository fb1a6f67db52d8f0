-- Take a callback out of the outbox, and put its message into a list of the broker's.
--
-- include batch_ledger
--
-- KEYS     graceful:batches; graceful:batches:outbox; the list and its bell, if that is here
-- ARGV     key prefix; batch; name of the callback; the message
--
-- Returns whether it was there.
local id, name = ARGV[2], ARGV[3]
if redis.call('HDEL', KEYS[2], id .. ':' .. name) == 0 or redis.call('EXISTS', key(id)) == 0 then
  return 0
end
redis.call('HSET', key(id), 'fired:' .. name, 'published', 'moved', stamp)
redis.call('ZADD', KEYS[1], 'XX', stamp, id)
if KEYS[3] then
  redis.call('LPUSH', KEYS[3], ARGV[4])
end
if KEYS[4] then
  if redis.call('LPUSH', KEYS[4], '') == 1 then
    redis.call('PEXPIRE', KEYS[4], 10000)
  else
    redis.call('LTRIM', KEYS[4], 0, 15)
  end
end
return 1
