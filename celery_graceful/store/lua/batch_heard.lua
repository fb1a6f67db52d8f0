-- Who sends a batch is at it still, or does not go on with it.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; who sends it; '1' if they go on
local id = ARGV[2]
if redis.call('HGET', key(id), 'sender') ~= ARGV[3] then
  return
end
if ARGV[4] == '1' then
  redis.call('HSET', key(id), 'heard', stamp)
else
  redis.call('HDEL', key(id), 'sender')
end
