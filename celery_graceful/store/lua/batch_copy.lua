-- Which of several copies of a callback runs: that which asks first, until it has ended.
--
-- KEYS     the batch
-- ARGV     name of the callback; the copy; '1' if it is one of several tasks that run beside each other
--
-- One that has failed ends the callback; the others run all the same, as in any chord.
--
-- Returns whether it is this one. A batch that is not known holds nobody up.
local fired, copy, again = unpack(redis.call('HMGET', KEYS[1],
  'fired:' .. ARGV[1], 'copy:' .. ARGV[1], 'again:' .. ARGV[1]))
if fired == 'ended' and not again and not (copy == ARGV[2] and ARGV[3] == '1') then
  return 0
end
if copy then
  return copy == ARGV[2] and 1 or 0
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'copy:' .. ARGV[1], ARGV[2])
end
return 1
