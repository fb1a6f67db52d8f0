-- Take a task out of quarantine, and send its message again.
--
-- KEYS     the quarantine; untold; a list of the broker, if that is Redis
-- ARGV     task id; the message
--
-- To the tail: it was the one that held others up. Returns whether it was there.
redis.call('HDEL', KEYS[1], '') -- a Redis that is full does what follows as well
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return 0
end
if KEYS[3] then
  redis.call('LPUSH', KEYS[3], ARGV[2])
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
