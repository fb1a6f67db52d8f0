-- Count deaths of processes that ran tasks.
--
-- KEYS     for each task a sorted set: which death -> when
-- ARGV     milliseconds in which deaths are counted together; for each task: which death
--
-- The same death is counted once. Returns for each task how many there were.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local counts = {}
for i, key in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.3f', now - ARGV[1] / 1000))
  redis.call('ZADD', key, 'NX', string.format('%.3f', now), ARGV[i + 1])
  redis.call('PEXPIRE', key, ARGV[1])
  counts[i] = redis.call('ZCARD', key)
end
return counts
