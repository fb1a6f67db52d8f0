-- Have a callback published, for the first time or again, whatever the batch waits for.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; name of the callback
--
-- Not one that has ended; and the next copy of it that asks runs. Returns what has become due, or
-- 'unknown'.
local id, name = ARGV[2], ARGV[3]
local of = redis.call('HMGET', key(id), 'state', 'callback:' .. name, 'fired:' .. name)
if not of[1] then
  return 'unknown'
end
if of[2] and of[3] ~= 'ended' then
  redis.call('HDEL', key(id), 'fired:' .. name, 'copy:' .. name, 'begun:' .. name, 'publishing:' .. name)
  redis.call('HINCRBY', key(id), 'round:' .. name, 1)
  fire(id, name, false)
  moved[id] = true
  look_at(id)
end
return settle_all()
