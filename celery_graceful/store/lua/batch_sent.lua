-- All members have been sent: from now on it may be complete.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch
--
-- Asked again, or of one that was cancelled, it only looks. Returns what has become due, or
-- 'unknown'.
local id = ARGV[2]
local state = redis.call('HGET', key(id), 'state')
if not state then
  return 'unknown'
end
if state == 'open' or state == 'sending' then
  redis.call('HSET', key(id), 'state', 'sent')
  moved[id] = true
end
look_at(id)
return settle_all()
