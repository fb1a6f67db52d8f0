-- Open a batch, inside of another one if it has a parent.
--
-- include batch_ledger
--
-- ARGV     key prefix; id; its parent, or ''; who adds it there, or ''; time to live and linger, in
--          milliseconds; its fields and their values
--
-- Asked again it only looks. Returns why it cannot be inside of that parent, or ''.
local id, parent, ttl, linger = ARGV[2], ARGV[3], tonumber(ARGV[5]), tonumber(ARGV[6])
if exists(id) then
  look_at(id)
  settle_all()
  return ''
end
local refused = parent ~= '' and refuses(parent, ARGV[4])
if refused then
  return refused
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
  unpack(ARGV, 7) }
if parent ~= '' then
  local before = known(parent)
  redis.call('SADD', key(parent, 'pending'), id)
  redis.call('SADD', key(parent, 'kids'), id)
  recount(parent, before)
  look_at(parent)
  fields[#fields + 1], fields[#fields + 2] = 'parent', parent
end
redis.call('HSET', key(id), unpack(fields))
moved[id] = true
look_at(id)
settle_all()
return ''
