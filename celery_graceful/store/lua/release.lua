-- Take a task out of quarantine, and send its message again.
--
-- KEYS     the quarantine; untold; there while somebody sends it again to a broker that is not here; a
--          list of the broker, if that is Redis
-- ARGV     task id; the message; who sends it again, or ''; what it has sent, or '': only that
--
-- To the tail: it was the one that held others up. Returns whether it was there; 2 and does nothing
-- while somebody else sends it again.
redis.call('HDEL', KEYS[1], '') -- a Redis that is full does what follows as well
local sends, kept = redis.call('GET', KEYS[3]), redis.call('HGET', KEYS[1], ARGV[1])
if not kept then
  return 0
end
if sends and sends ~= ARGV[3] then
  return 2
end
if ARGV[4] ~= '' and kept ~= ARGV[4] then
  return 0 -- it has died again since
end
if KEYS[4] then
  redis.call('LPUSH', KEYS[4], ARGV[2])
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
