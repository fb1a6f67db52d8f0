-- Which batches have not moved for a while; those that have expired are forgotten.
--
-- include batch_ledger
--
-- ARGV     key prefix; milliseconds; how many to look at; how many of them to leave out
--
-- Returns how many were looked at, and those that are there.
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[2]),
  'LIMIT', ARGV[4], ARGV[3])
local there = {}
for _, id in ipairs(found) do
  if exists(id) then
    there[#there + 1] = id
  else
    forget(id)
  end
end
return { #found, unpack(there) }
