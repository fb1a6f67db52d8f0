-- Forget a batch. What it is inside of hears that it was revoked.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch
--
-- Returns what has become due, or 'unknown'.
local id = ARGV[2]
local of = redis.call('HMGET', key(id), 'state', 'parent')
if not of[1] then
  return 'unknown'
end
redis.call('UNLINK', key(id))
for _, part in ipairs(PARTS) do
  redis.call('UNLINK', key(id, part))
end
redis.call('ZREM', KEYS[1], id)
for _, name in ipairs(CALLBACKS) do
  redis.call('HDEL', KEYS[2], id .. ':' .. name)
end
if of[2] and redis.call('EXISTS', key(of[2])) == 1 then
  redis.call('SREM', key(of[2], 'kids'), id)
  finish_member(of[2], id, 'revoked')
  look_at(of[2])
end
return settle_all()
