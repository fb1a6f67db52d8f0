-- Count deaths of processes that ran tasks.
--
-- KEYS[1]  the claims of the worker that died, or what stands for none
-- KEYS     for each task a sorted set: which death -> when
-- ARGV     milliseconds in which deaths are counted together; for each task: which death; number
--          of the claim, or ''
--
-- The same death is counted once, and not at all when the claim is gone: somebody else has dealt
-- with it. Returns for each task how many there were.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local counts = {}
for i = 2, #KEYS do
  local key, death, number = KEYS[i], ARGV[2 * i - 2], ARGV[2 * i - 1]
  if number == '' or redis.call('HEXISTS', KEYS[1], number) == 1 then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.3f', now - ARGV[1] / 1000))
    redis.call('ZADD', key, 'NX', string.format('%.3f', now), death)
    redis.call('PEXPIRE', key, ARGV[1])
    counts[i - 1] = redis.call('ZCARD', key)
  else
    counts[i - 1] = 0
  end
end
return counts
