-- Nobody sends a task of the quarantine again any more.
--
-- KEYS     there while somebody does so
-- ARGV     who did
--
-- Another one may do so by now: that is left alone.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
