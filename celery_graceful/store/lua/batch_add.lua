-- Register members, before they are sent.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; who adds, or ''; pairs: member, its message or ''
--
-- Those that are registered already, or have ended since, stay as they are. Returns how many are
-- new, or why nothing can be added.
local id = ARGV[2]
local refused = refuses(id, ARGV[3])
if refused then
  return refused
end
local members = {}
for i = 4, #ARGV, 2 do
  members[#members + 1] = ARGV[i]
end
local failed = redis.call('HMGET', key(id, 'failed'), unpack(members))
local succeeded = redis.call('SMISMEMBER', key(id, 'succeeded'), unpack(members))
local new = 0
for i, member in ipairs(members) do
  if not failed[i] and succeeded[i] == 0 then
    if ARGV[2 * i + 3] ~= '' then
      redis.call('HSET', key(id, 'messages'), member, ARGV[2 * i + 3])
    end
    new = new + redis.call('SADD', key(id, 'pending'), member)
  end
end
redis.call('HINCRBY', key(id), 'total', new)
has_moved(id)
renew(id)
return new
