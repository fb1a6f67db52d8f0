-- Which of several copies of a callback runs: that which asks first, until it has ended.
--
-- KEYS     the batch
-- ARGV     name of the callback; the copy
--
-- Returns whether it is this one. A batch that is not known holds nobody up, nor does a callback
-- that only counts as ended since its batch was completed by force.
local fired, copy = unpack(redis.call('HMGET', KEYS[1], 'fired:' .. ARGV[1], 'copy:' .. ARGV[1]))
if not copy then
  if redis.call('EXISTS', KEYS[1]) == 1 then
    redis.call('HSET', KEYS[1], 'copy:' .. ARGV[1], ARGV[2])
  end
  return 1
end
return copy == ARGV[2] and fired ~= 'ended' and 1 or 0
