-- Take a callback out of the outbox, and put its message into a list of the broker's.
--
-- include batch_ledger
--
-- KEYS     graceful:batches; graceful:batches:outbox; the list and its bell, if that is here
-- ARGV     key prefix; batch; name of the callback; the message
--
-- Returns whether it was there.
local id, name = ARGV[2], ARGV[3]
local entry = id .. ':' .. name
if redis.call('HEXISTS', KEYS[2], entry) == 0 then
  return 0
end
if not exists(id) then
  redis.call('HDEL', KEYS[2], entry)
  return 0
end
if KEYS[4] then
  redis.call('LPUSH', KEYS[4], '')
  redis.call('LTRIM', KEYS[4], 0, 15)
  redis.call('PEXPIRE', KEYS[4], 10000)
end
if KEYS[3] then
  redis.call('LPUSH', KEYS[3], ARGV[4])
end
if redis.call('HGET', key(id), 'fired:' .. name) ~= 'ended' then
  redis.call('HSET', key(id), 'fired:' .. name, 'published')
end
redis.call('HDEL', key(id), 'publishing:' .. name)
redis.call('HDEL', KEYS[2], entry)
moved[id] = true
look_at(id)
settle_all()
return 1
