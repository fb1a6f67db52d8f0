-- Complete a batch by force: who has not ended has failed. Where all have, callbacks have ended.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; how many members at once; '1' if this is not the first call
--
-- Returns how many members, or batches inside, are left, and what has become due; or 'unknown'.
local id = ARGV[2]
local state, total, kind = unpack(redis.call('HMGET', key(id), 'state', 'total', 'kind'))
if not state then
  return 'unknown'
end
if state == 'open' or state == 'sending' then
  redis.call('HSET', key(id), 'state', 'sent')
  if kind == 'batch' then  -- of a chord Celery counts how many there are
    redis.call('HSET', key(id), 'cut', '1')
  end
  moved[id] = true
end
local outcome = state == 'cancelled' and 'revoked' or 'failed'
local members = redis.call('SRANDMEMBER', key(id, 'pending'), ARGV[3])
leave_kids(id, members)
finish_members(id, members, outcome)
local left = count(id, 'pending')
if left == 0 then
  leave_kids(id, redis.call('SRANDMEMBER', key(id, 'kids'), ARGV[3]))
  left = count(id, 'kids')
end
if left == 0 then
  if redis.call('HEXISTS', key(id), 'cleared') == 0 and known(id) < tonumber(total) then
    redis.call('HSET', key(id), 'lost', total - known(id))
    moved[id] = true
  end
  if #members == 0 and ARGV[4] ~= '1' then
    for _, name in ipairs(CALLBACKS) do
      if redis.call('HGET', key(id), 'fired:' .. name) == 'published' then
        redis.call('HSET', key(id), 'fired:' .. name, 'ended', 'again:' .. name, '1')
        moved[id] = true
      end
    end
  end
end
look_at(id)
return { left, unpack(settle_all()) }
