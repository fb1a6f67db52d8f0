-- Give up a lock, if it is still ours.
--
-- KEYS[1]  the lock
-- ARGV     who holds it
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
