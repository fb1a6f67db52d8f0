-- Open a batch, inside of another one if it has a parent.
--
-- include batch_ledger
--
-- ARGV     key prefix; id; its parent, or ''; who adds it there, or ''; time to live and linger, in
--          milliseconds; its fields and their values
--
-- Asked again it does nothing. Returns why it cannot be inside of that parent, or ''.
local id, parent, ttl, linger = ARGV[2], ARGV[3], tonumber(ARGV[5]), tonumber(ARGV[6])
if redis.call('EXISTS', key(id)) == 1 then
  return ''
end
if parent ~= '' then
  local refused = refuses(parent, ARGV[4])
  if refused then
    return refused
  end
  redis.call('HSET', key(id), 'parent', parent)
  redis.call('SADD', key(parent, 'pending'), id)
  redis.call('SADD', key(parent, 'kids'), id)
  redis.call('HINCRBY', key(parent), 'total', 1)
  has_moved(parent)
end
redis.call('HSET', key(id), 'state', 'open', 'total', 0, 'created', stamp,
  'ttl', ARGV[5], 'linger', ARGV[6], unpack(ARGV, 7))
has_moved(id)
-- What it is inside of lives longer.
local least = { ttl = math.max(ttl, linger) + MARGIN, linger = linger + MARGIN }
while parent and parent ~= '' do
  local of = redis.call('HMGET', key(parent), 'ttl', 'linger', 'parent')
  if not of[1] then
    break
  end
  for i, name in ipairs({ 'ttl', 'linger' }) do
    least[name] = math.max(least[name], tonumber(of[i]))
    redis.call('HSET', key(parent), name, string.format('%.0f', least[name]))
    least[name] = least[name] + MARGIN
  end
  parent = of[3]
end
renew(id)
return ''
