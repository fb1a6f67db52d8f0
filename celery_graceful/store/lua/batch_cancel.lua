-- Cancel a batch, unless all of it has ended.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch
--
-- Returns what has become due, or 'unknown'.
local id = ARGV[2]
local state = redis.call('HGET', key(id), 'state')
if not state then
  return 'unknown'
end
if state == 'open' or state == 'sending' or (state == 'sent' and
    redis.call('SCARD', key(id, 'pending')) + redis.call('SCARD', key(id, 'kids')) > 0) then
  redis.call('HSET', key(id), 'state', 'cancelled')
  has_moved(id)
end
look_at(id)
return settle_all()
