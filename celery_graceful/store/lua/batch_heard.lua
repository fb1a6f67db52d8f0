-- Who sends a batch is at it still, or does not go on with it.
--
-- KEYS     the batch
-- ARGV     who sends it; '1' if they go on
local sender = ARGV[1]
if redis.call('HGET', KEYS[1], 'sender') ~= sender then
  return
end
if ARGV[2] == '1' then
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'heard', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
else
  redis.call('HDEL', KEYS[1], 'sender')
end
