-- A callback has ended, and its message is acknowledged.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; name of the callback; worker and number of the claim, or ''
--
-- Returns what has become due.
local id, fired = ARGV[2], 'fired:' .. ARGV[3]
local claims = ARGV[1] .. 'graceful:claims:' .. ARGV[4]
if ARGV[4] == '' or redis.call('HEXISTS', claims, ARGV[5]) == 1 then
  if redis.call('HEXISTS', key(id), fired) == 1 then
    redis.call('HSET', key(id), fired, 'ended', 'moved', stamp)
    redis.call('ZADD', KEYS[1], 'XX', stamp, id)
    redis.call('HDEL', KEYS[2], id .. ':' .. ARGV[3])
    look_at(id)
  end
end
settle_all()
if ARGV[4] ~= '' then
  redis.call('HDEL', claims, ARGV[5])
end
return due
