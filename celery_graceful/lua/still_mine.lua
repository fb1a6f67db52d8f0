-- Whether a claim is still held; the lease of its worker is renewed along the way.
--
-- KEYS[1]  graceful:workers
-- KEYS[2]  lease of the worker
-- KEYS[3]  claims of the worker
-- ARGV     worker, milliseconds to live, number of the claim ('': whether any may be held)
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 then
  return 0
end
if redis.call('PEXPIRE', KEYS[2], ARGV[2]) == 0 then
  redis.call('SET', KEYS[2], '{}', 'PX', ARGV[2])
end
if ARGV[3] == '' then
  return 1
end
return redis.call('HEXISTS', KEYS[3], ARGV[3])
