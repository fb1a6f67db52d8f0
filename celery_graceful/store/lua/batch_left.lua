-- It is about to be said that nobody sends the rest of a batch: once of each producer.
--
-- KEYS     the batch
--
-- Returns whether it was not said before.
local heard, told = unpack(redis.call('HMGET', KEYS[1], 'heard', 'told'))
if not heard or heard == told then
  return 0
end
redis.call('HSET', KEYS[1], 'told', heard)
return 1
