-- Some fields of batches.
--
-- KEYS     batches
-- ARGV     names of fields
--
-- Returns the values of each batch.
local found = {}
for i, key in ipairs(KEYS) do
  found[i] = redis.call('HMGET', key, unpack(ARGV))
end
return found
