-- Forget a batch. What it is inside of hears that it was revoked.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; who sends it, or '': only if they do, and none of its members is there
--
-- Returns what has become due, or why not.
local id = ARGV[2]
if not exists(id) then
  forget(id)
  return 'unknown'
end
if ARGV[3] ~= '' and (redis.call('HGET', key(id), 'sender') ~= ARGV[3] or known(id) > 0) then
  return redis.call('HGET', key(id), 'state')
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
