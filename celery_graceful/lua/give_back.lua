-- Give claims back to the lists that they came from, each at most once, and ring for them.
--
-- KEYS[1]  claims of a worker
-- ARGV     key prefix, RPUSH or LPUSH; triples: number of the claim, its list, the message
--
-- Consumers take from the right, so RPUSH is the head and LPUSH the tail. Returns how many were moved.
local moved = 0
for i = 3, #ARGV, 3 do
  if redis.call('HDEL', KEYS[1], ARGV[i]) == 1 then
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
