-- How many members batches miss, by the last look for them.
--
-- KEYS     batches
local found = {}
for i, key in ipairs(KEYS) do
  found[i] = tonumber(redis.call('HGET', key, 'missing') or 0)
end
return found
