-- A check-in is closed although its run goes on: the next one has another number.
--
-- KEYS[1]  the run's hash
-- ARGV     number of the check-in; seconds to live
--
-- Does it once, however often it is asked.
local closed = tonumber(redis.call('HGET', KEYS[1], 'closed') or '0')
if closed == tonumber(ARGV[1]) then
  redis.call('HSET', KEYS[1], 'closed', closed + 1)
  redis.call('HDEL', KEYS[1], 'began')
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
