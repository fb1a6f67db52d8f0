-- Who publishes a callback in several steps begins, or goes on.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; name of the callback; milliseconds for which others leave it alone then;
--          '1' if who asks does so already
--
-- Returns whether it is to be published by them: it is in the outbox, and nobody else does so.
local id, field, span = ARGV[2], 'publishing:' .. ARGV[3], tonumber(ARGV[4])
if redis.call('HEXISTS', KEYS[2], id .. ':' .. ARGV[3]) == 0 then
  return 0
end
local before = redis.call('HGET', key(id), field)
if ARGV[5] == '' and before and now - before < span then
  return 0
end
if exists(id) then
  redis.call('HSET', key(id), field, stamp)
end
return 1
