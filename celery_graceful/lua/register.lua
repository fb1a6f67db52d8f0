-- Let a worker claim, or let one that has registered go on after its lease ran out.
--
-- KEYS[1]  graceful:workers
-- KEYS[2]  lease of the worker
-- KEYS[3]  what stays known of the worker when its lease has run out
-- ARGV     worker, heartbeat, milliseconds to live, 1 to register for the first time; what to know
--
-- Returns 1, or 0 to a worker that has been taken for dead.
if ARGV[4] == '1' then
  redis.call('SADD', KEYS[1], ARGV[1])
  redis.call('SET', KEYS[3], ARGV[5])
elseif redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
