-- Have a callback published, for the first time or again, whatever the batch waits for.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; name of the callback
--
-- Not one that has ended. Returns what has become due, or 'unknown'.
local id, fired = ARGV[2], 'fired:' .. ARGV[3]
local of = redis.call('HMGET', key(id), 'state', fired, 'callback:' .. ARGV[3])
if not of[1] then
  return 'unknown'
end
if of[3] and of[2] ~= 'ended' then
  redis.call('HDEL', key(id), fired)
  fire(id, ARGV[3])
  has_moved(id)
  renew(id)
end
return due
