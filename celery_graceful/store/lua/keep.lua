-- Keep a message in quarantine that no task can be made of, or that nobody knew.
--
-- KEYS     the quarantine; untold; when it came to wait; the claims of a worker, if it is a claim
-- ARGV     id; what is kept, JSON; number of the claim; '1' if its failure is to be told
--
-- Returns 0 if the claim is gone: somebody else deals with it; 2 and does nothing if there is
-- another one of that id; 1.
if KEYS[4] and redis.call('HEXISTS', KEYS[4], ARGV[3]) == 0 then
  return 0
end
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then
  return 2
end
if KEYS[4] then
  redis.call('HDEL', KEYS[4], ARGV[3])
end
redis.call('DEL', KEYS[3])
if ARGV[4] == '1' then
  redis.call('ZADD', KEYS[2], redis.call('TIME')[1], ARGV[1])
end
return 1
