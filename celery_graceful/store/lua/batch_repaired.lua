-- A batch was repaired: count it.
--
-- KEYS     the batch
--
-- Returns how often it was.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
return redis.call('HINCRBY', KEYS[1], 'repairs', 1)
