-- Put tasks into quarantine, with their messages.
--
-- KEYS     the quarantine; untold; three for each task: its deaths; started; the claims of the
--          worker that died, or what stands for none
-- ARGV     three for each task: its id; what is kept, JSON; number of the claim, or ''
--
-- Where a claim is gone, somebody else has dealt with it: nothing is done. Claims go last: what an
-- error breaks off is asked for again. Returns for each task whether it was done.
local now, done = redis.call('TIME')[1], {}
for i = 1, #ARGV, 3 do
  local number, claims = ARGV[i + 2], KEYS[i + 4]
  if number ~= '' then
    redis.call('HDEL', claims, '') -- a Redis that is full does what follows as well
  end
  if number ~= '' and redis.call('HEXISTS', claims, number) == 0 then
    done[#done + 1] = 0
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    redis.call('ZADD', KEYS[2], now, ARGV[i])
    if number ~= '' then
      redis.call('HDEL', claims, number)
    end
    redis.call('DEL', KEYS[i + 2], KEYS[i + 3])
    done[#done + 1] = 1
  end
end
return done
