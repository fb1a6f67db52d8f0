-- A run begins or goes on: note when it began, once.
--
-- KEYS[1]  the run's hash
-- ARGV     now, milliseconds of the worker's clock; seconds to live
--
-- Returns when the run began, and how many of its check-ins were closed before its end.
redis.call('HSETNX', KEYS[1], 'began', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('HMGET', KEYS[1], 'began', 'closed')
