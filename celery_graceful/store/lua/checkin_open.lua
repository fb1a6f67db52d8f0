-- A run begins or goes on: note when it began, once.
--
-- KEYS[1]  the run's hash
-- ARGV     now, milliseconds of the worker's clock; seconds to live; '1': it has ended meanwhile
--
-- Returns when the run began, how many of its check-ins were closed before its end, and whether
-- nothing is kept of it: not while an earlier check-in of it might be taken for this one.
local began, closed = unpack(redis.call('HMGET', KEYS[1], 'began', 'closed'))
if ARGV[3] == '1' and not closed then
  if began then
    redis.call('UNLINK', KEYS[1])
  end
  return { began, closed, 1 }
end
if not began then
  began = ARGV[1]
  redis.call('HSET', KEYS[1], 'began', began)
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return { began, closed, 0 }
