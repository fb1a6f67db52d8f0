-- Whether a claim is still held; the lease of its worker is renewed along the way.
--
-- KEYS     graceful:workers; lease of the worker; its claims; graceful:fallen; its tombstone
-- ARGV     worker; milliseconds to live; number of the claim ('': whether any may be held)
--
-- A worker that nobody knows was taken for dead, or Redis has lost its data: then nobody else has
-- the message, and the worker is about to register again.
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 then
  return 1 - math.max(redis.call('SISMEMBER', KEYS[4], ARGV[1]), redis.call('EXISTS', KEYS[5]))
end
if redis.call('PEXPIRE', KEYS[2], ARGV[2]) == 0 then
  redis.call('SET', KEYS[2], '{}', 'PX', ARGV[2])
end
if ARGV[3] == '' then
  return 1
end
-- Of one that lives nobody else takes any: it was lost when Redis started from an older snapshot.
return math.max(redis.call('HEXISTS', KEYS[3], ARGV[3]), 1 - redis.call('EXISTS', KEYS[5]))
