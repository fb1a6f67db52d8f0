-- Complete a batch by force: who has not ended has failed. Where all have, callbacks have ended.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; how many members at once; '1' if it has been called before
--
-- Returns how many members are left, and what has become due; or 'unknown'.
local id = ARGV[2]
local of = redis.call('HMGET', key(id), 'state', 'total', 'lost', 'counted')
if not of[1] then
  return 'unknown'
end
if of[1] == 'open' or of[1] == 'sending' then
  redis.call('HSET', key(id), 'state', 'sent')
end
local members = redis.call('SRANDMEMBER', key(id, 'pending'), ARGV[3])
for _, member in ipairs(members) do
  redis.call('SREM', key(id, 'kids'), member)
  finish_member(id, member, 'failed')
end
local left = redis.call('SCARD', key(id, 'pending'))
if left == 0 then
  redis.call('UNLINK', key(id, 'kids'))
  local known = redis.call('HLEN', key(id, 'failed')) + redis.call('SCARD', key(id, 'succeeded'))
  local lost = tonumber(of[2]) - known - tonumber(of[4] or 0)
  if lost ~= tonumber(of[3] or 0) then
    redis.call('HSET', key(id), 'lost', lost)
    fire(id, 'on_failure')
  end
  if #members == 0 and ARGV[4] ~= '1' then
    for _, name in ipairs(CALLBACKS) do
      if redis.call('HGET', key(id), 'fired:' .. name) == 'published' then
        redis.call('HSET', key(id), 'fired:' .. name, 'ended')
      end
    end
  end
end
look_at(id)
return { left, unpack(settle_all()) }
