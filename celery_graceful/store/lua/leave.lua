-- A worker ends. What it still claims is left to be rescued at once, and has not died.
--
-- KEYS[1]  graceful:workers
-- KEYS[2]  lease of the worker
-- KEYS[3]  graceful:fallen
-- KEYS[4]  claims of the worker
-- KEYS[5]  what is known of the worker
-- KEYS[6]  which claims have begun
-- ARGV     worker
redis.call('DEL', KEYS[2], KEYS[6])
if redis.call('SREM', KEYS[1], ARGV[1]) == 1 and redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('SADD', KEYS[3], ARGV[1])
else
  redis.call('DEL', KEYS[5])
end
