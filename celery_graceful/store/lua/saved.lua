-- What hashes hold, and milliseconds until they are forgotten: of many in one round trip.
--
-- KEYS     hashes
--
-- Returns for each its fields and values, and the milliseconds.
local found = {}
for i, key in ipairs(KEYS) do
  found[i] = { redis.call('HGETALL', key), redis.call('PTTL', key) }
end
return found
