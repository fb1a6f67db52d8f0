-- Open a batch, inside of another one if it has a parent.
--
-- include batch_ledger
-- include batch_adding
--
-- ARGV     key prefix; id; its parent, or ''; who adds it there, or ''; time to live and linger, in
--          milliseconds; id of the task that adds it, or ''; what it is like; ids of those that are
--          being sent there now, with spaces; its fields and their values
--
-- Asked again it only looks. Where that task has added one like it before, of which not all was
-- sent, and which nobody sends now, it is that one: the task is run again. Returns why it cannot be
-- inside of that parent, or '', and the id.
local id, parent, ttl, linger = ARGV[2], ARGV[3], tonumber(ARGV[5]), tonumber(ARGV[6])
local adds, like, busy = ARGV[7], ARGV[8], ' ' .. ARGV[9] .. ' '
if exists(id) then
  look_at(id)
  settle_all()
  return { '', id }
end
local refused = parent ~= '' and refuses(parent, ARGV[4])
if refused then
  return { refused, id }
end
if parent ~= '' and adds ~= '' then
  local added = being_added(parent, adds)
  for _, one in ipairs(added) do
    if one[2] == like and not string.find(busy, ' ' .. one[1] .. ' ', 1, true) then
      return { '', one[1] }
    end
  end
  added[#added + 1] = { id, like }
  note_added(parent, adds, added)
end
-- What it is inside of lives longer.
local above, least = parent, { ttl = math.max(ttl, linger), linger = linger }
while above and above ~= '' do
  local of = redis.call('HMGET', key(above), 'ttl', 'linger', 'parent')
  if not of[1] then
    break
  end
  for i, name in ipairs({ 'ttl', 'linger' }) do
    least[name] = math.max(least[name] + MARGIN, tonumber(of[i]))
    redis.call('HSET', key(above), name, string.format('%.0f', least[name]))
  end
  above = of[3]
end
local fields = { 'state', 'open', 'total', 0, 'created', stamp, 'moved', stamp, 'ttl', ARGV[5], 'linger', ARGV[6],
  unpack(ARGV, 10) }
if parent ~= '' then
  local before = known(parent)
  redis.call('SADD', key(parent, 'pending'), id)
  redis.call('SADD', key(parent, 'kids'), id)
  recount(parent, before)
  look_at(parent)
  fields[#fields + 1], fields[#fields + 2] = 'parent', parent
  if adds ~= '' then
    fields[#fields + 1], fields[#fields + 2] = 'adds', adds
  end
end
redis.call('HSET', key(id), unpack(fields))
moved[id] = true
look_at(id)
settle_all()
return { '', id }
