-- Forget a worker that was taken for dead, once all of its claims have gone back.
--
-- KEYS     its claims; which of them have begun; what is known of it; graceful:fallen
-- ARGV     worker
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('SREM', KEYS[4], ARGV[1])
  redis.call('DEL', KEYS[2], KEYS[3])
end
