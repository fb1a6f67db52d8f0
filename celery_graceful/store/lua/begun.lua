-- Note which claims of a worker have begun to run.
--
-- KEYS     graceful:workers; claims of the worker; begun: numbers of those that have
-- ARGV     worker; how many numbers follow that have begun; they; numbers of those that were put
--          down again
--
-- Not for a worker that was taken for dead: what it held is judged by what was known then. Claims
-- that are gone stay noted until they are half of all.
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 then
  return 0
end
local last = 2 + tonumber(ARGV[2])
for i = 3, #ARGV do
  redis.call(i <= last and 'SADD' or 'SREM', KEYS[3], ARGV[i])
end
if redis.call('SCARD', KEYS[3]) > 1000 + 2 * redis.call('HLEN', KEYS[2]) then
  for _, number in ipairs(redis.call('SMEMBERS', KEYS[3])) do
    if redis.call('HEXISTS', KEYS[2], number) == 0 then
      redis.call('SREM', KEYS[3], number)
    end
  end
end
return 1
