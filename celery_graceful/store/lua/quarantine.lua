-- Put a task into quarantine, with its message.
--
-- KEYS     the quarantine; untold; deaths of the task; started; the claims of the worker that
--          died, if there are claims
-- ARGV     task id; what is kept, JSON; number of the claim
--
-- Returns 0 and does nothing when the claim is gone: somebody else has dealt with it.
if KEYS[5] and redis.call('HDEL', KEYS[5], ARGV[3]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], redis.call('TIME')[1], ARGV[1])
redis.call('DEL', KEYS[3], KEYS[4])
return 1
