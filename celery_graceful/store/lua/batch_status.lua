-- How a batch stands.
--
-- KEYS     the batch; its pending, failed and kids; its succeeded
--
-- Returns its fields and their values, and how many are pending, failed, kids and succeeded.
return {
  redis.call('HGETALL', KEYS[1]),
  redis.call('SCARD', KEYS[2]),
  redis.call('HLEN', KEYS[3]),
  redis.call('SCARD', KEYS[4]),
  redis.call('SCARD', KEYS[5]),
}
