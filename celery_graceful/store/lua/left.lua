-- What a worker has left that was taken for dead.
--
-- KEYS     its claims; which of them have begun; what is known of it
--
-- Returns the numbers of the claims; of those that have begun; what is known, or nothing.
return {
  redis.call('HKEYS', KEYS[1]), redis.call('SMEMBERS', KEYS[2]), redis.call('GET', KEYS[3])
}
