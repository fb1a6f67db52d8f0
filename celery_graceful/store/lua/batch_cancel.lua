-- Cancel a batch, unless all of its members have ended.
--
-- include batch_ledger
-- include batch_adding
--
-- ARGV     key prefix; batch
--
-- Returns what has become due, or 'unknown'.
local id = ARGV[2]
local state, total, lost, cleared = unpack(redis.call('HMGET', key(id),
  'state', 'total', 'lost', 'cleared'))
if not state then
  return 'unknown'
end
if state ~= 'cancelled' and not is_complete(id, state, total, lost, cleared) then
  redis.call('HSET', key(id), 'state', 'cancelled')
  note_settled(id)
  moved[id] = true
end
look_at(id)
return settle_all()
