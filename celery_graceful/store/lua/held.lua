-- How long leases still run, and how many claims their workers hold: of many in one round trip.
--
-- KEYS     of each worker its lease, and its claims
--
-- Returns for each the milliseconds, and the number.
local found = {}
for i = 1, #KEYS, 2 do
  found[#found + 1] = { redis.call('PTTL', KEYS[i]), redis.call('HLEN', KEYS[i + 1]) }
end
return found
