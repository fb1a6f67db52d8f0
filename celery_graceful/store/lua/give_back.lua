-- Give claims back to the lists that they came from, each at most once, and ring for them.
--
-- KEYS     claims of a worker; graceful:epoch; tombstone of the worker; its claims that went back
--          although the server had lost them
-- ARGV     key prefix; RPUSH or LPUSH; four for each: number of the claim, its list, the message,
--          the epoch of which it is if the message is from memory, else ''
--
-- Consumers take from the right, so RPUSH is the head and LPUSH the tail. A claim that is not
-- there is somebody else's by now, or lost with all data of its epoch: then it is only here, and
-- asked for again it does not go back twice. Returns how many were moved.
local moved, epoch = 0, redis.call('HGET', KEYS[2], 'id')
local function is_lost(number, of)
  if of == '' or of == epoch or redis.call('EXISTS', KEYS[3]) == 1 then
    return false
  end
  local first = redis.call('SADD', KEYS[4], number) == 1
  redis.call('EXPIRE', KEYS[4], 60)
  return first
end
for i = 3, #ARGV, 4 do
  if redis.call('HDEL', KEYS[1], ARGV[i]) == 1 or is_lost(ARGV[i], ARGV[i + 3]) then
    local list = ARGV[i + 1]
    redis.call(ARGV[2], list, ARGV[i + 2])
    local queue = string.match(list, '^(.-)\6\22') or list
    local bell = ARGV[1] .. 'graceful:bell:' .. string.sub(queue, #ARGV[1] + 1)
    if redis.call('LPUSH', bell, '') == 1 then
      redis.call('PEXPIRE', bell, 10000)
    else
      redis.call('LTRIM', bell, 0, 15)
    end
    moved = moved + 1
  end
end
return moved
