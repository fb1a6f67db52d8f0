-- Take a worker for dead, if its lease has run out.
--
-- KEYS[1]  graceful:workers
-- KEYS[2]  lease of the worker
-- KEYS[3]  graceful:fallen
-- ARGV     worker
--
-- From here on it claims nothing more. Returns 1 if it has fallen now.
if redis.call('EXISTS', KEYS[2]) == 1 or redis.call('SREM', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('SADD', KEYS[3], ARGV[1])
return 1
