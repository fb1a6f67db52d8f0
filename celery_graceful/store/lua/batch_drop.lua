-- Forget a batch. What it is inside of hears that it was revoked.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch
--
-- Returns what has become due, or 'unknown'.
local id = ARGV[2]
if not exists(id) then
  forget(id)
  return 'unknown'
end
local parent = redis.call('HGET', key(id), 'parent')
if parent and exists(parent) then
  redis.call('SREM', key(parent, 'kids'), id)
  finish_members(parent, { id }, 'revoked')
  look_at(parent)
  settle_all()
end
forget(id)
return due
