-- Have a callback published, for the first time or again, whatever the batch waits for.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; name of the callback; which copy of it was seen, or '': whatever that is
--
-- Not one that has ended, or that another copy has begun of, or was sent of, since it was seen. The next
-- copy of it that asks runs. Returns what has become due, or 'unknown'.
local id, name = ARGV[2], ARGV[3]
local of = redis.call('HMGET', key(id), 'state', 'callback:' .. name, 'fired:' .. name,
  'copy:' .. name, 'begun:' .. name, 'round:' .. name)
if not of[1] then
  return 'unknown'
end
local seen = (of[4] or '') .. '/' .. (of[5] or '') .. '/' .. (of[6] or '')
if of[2] and of[3] ~= 'ended' and (ARGV[4] == '' or ARGV[4] == seen) then
  redis.call('HDEL', key(id), 'fired:' .. name, 'copy:' .. name, 'begun:' .. name, 'publishing:' .. name)
  redis.call('HINCRBY', key(id), 'round:' .. name, 1)
  fire(id, name, false)
  moved[id] = true
  look_at(id)
end
return settle_all()
