-- Which of several copies of a callback runs: that which asks first, until it has ended. Of one that is
-- made of parts, this is said of each.
--
-- KEYS     the batch; which copies of parts run
-- ARGV     name of the callback; the copy; of a task that does not end the callback: its id, if it is the
--          same in each copy, else '*'; or '' of that which does
--
-- One that has failed ends the callback; the others run all the same, as in any chord.
--
-- Returns whether it is this one. A batch that is not known holds nobody up.
local name, mine, part = ARGV[1], ARGV[2], ARGV[3]
local fired, copy, again, begun, round = unpack(redis.call('HMGET', KEYS[1],
  'fired:' .. name, 'copy:' .. name, 'again:' .. name, 'begun:' .. name, 'round:' .. name))
if part == '' or part == '*' then
  if fired == 'ended' and not again and not (copy == mine and part == '*') then
    return 0
  end
  if copy then
    return copy == mine and 1 or 0
  end
  if redis.call('EXISTS', KEYS[1]) == 1 then
    redis.call('HSET', KEYS[1], 'copy:' .. name, mine)
  end
  return 1
end
if fired == 'ended' and not again and not begun then
  return 0
end
local field, value = name .. ':' .. part, (round or '0') .. ':'
local known = redis.call('HGET', KEYS[2], field)
if known and string.sub(known, 1, #value) == value then
  return known == value .. mine and 1 or 0
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'begun:' .. name, '1')
  redis.call('HSET', KEYS[2], field, value .. mine)
  redis.call('PEXPIRE', KEYS[2], math.max(1000, redis.call('PTTL', KEYS[1])))
end
return 1
