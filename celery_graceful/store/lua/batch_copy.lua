-- Which of several copies of a callback runs: that which asks first, until it has ended.
--
-- KEYS     the batch
-- ARGV     name of the callback; the copy
--
-- Returns whether it is this one. A batch that is not known holds nobody up.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 1
end
if redis.call('HGET', KEYS[1], 'fired:' .. ARGV[1]) == 'ended' then
  return 0
end
redis.call('HSETNX', KEYS[1], 'copy:' .. ARGV[1], ARGV[2])
return redis.call('HGET', KEYS[1], 'copy:' .. ARGV[1]) == ARGV[2] and 1 or 0
