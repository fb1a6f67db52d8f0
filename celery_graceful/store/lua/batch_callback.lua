-- A callback has ended, and its message is acknowledged.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; name of the callback; worker and number of the claim, or ''
--
-- Returns what has become due.
local id, name, claims = ARGV[2], ARGV[3], ARGV[1] .. 'graceful:claims:' .. ARGV[4]
if (ARGV[4] == '' or redis.call('HEXISTS', claims, ARGV[5]) == 1)
    and redis.call('HEXISTS', key(id), 'fired:' .. name) == 1 then
  redis.call('HDEL', KEYS[2], id .. ':' .. name)
  redis.call('HSETNX', key(id), 'copy:' .. name, '')
  redis.call('HSET', key(id), 'fired:' .. name, 'ended')
  moved[id] = true
  look_at(id)
end
settle_all()
if ARGV[4] ~= '' then
  redis.call('HDEL', claims, ARGV[5])
end
return due
