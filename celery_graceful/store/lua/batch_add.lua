-- Register members, before they are sent.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; who adds, or ''; who sends all of it, or ''; pairs: member, its message
--          or ''
--
-- Those that are registered already, or have ended since, stay as they are. Returns how many are
-- new, or why nothing can be added.
local id = ARGV[2]
local refused = refuses(id, ARGV[3], ARGV[4])
if refused then
  return refused
end
if ARGV[4] ~= '' then
  redis.call('HSET', key(id), 'heard', stamp)
end
local members, is_there = {}, {}
for i = 5, #ARGV, 2 do
  members[#members + 1] = ARGV[i]
end
for _, part in ipairs({ 'pending', 'succeeded', 'failed', 'revoked' }) do
  if count(id, part) > 0 then
    for i, is in ipairs(redis.call('SMISMEMBER', key(id, part), unpack(members))) do
      is_there[i] = is_there[i] or is == 1
    end
  end
end
local before, new, there, messages = known(id), {}, count(id, 'pending'), {}
for i, member in ipairs(members) do
  if not is_there[i] then
    new[#new + 1] = member
    if ARGV[2 * i + 4] ~= '' then
      messages[#messages + 1], messages[#messages + 2] = member, ARGV[2 * i + 4]
    end
  end
end
if #messages > 0 then
  redis.call('HSET', key(id, 'messages'), unpack(messages))
end
if #new > 0 then
  redis.call('SADD', key(id, 'pending'), unpack(new))
  if ARGV[3] ~= '' then
    redis.call('HINCRBY', key(id), 'inside', #new)
  end
end
recount(id, before)
look_at(id)
settle_all()
return count(id, 'pending') - there
