-- A callback has ended, and its message is acknowledged.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; name of the callback; '1' if its message is kept, and runs when it is
--          sent again; worker and number of the claim, or ''
--
-- One that is not known to have been sent is none of the batch's, but for the body of a chord: Celery
-- sends that, and who does may die before saying so. Returns what has become due.
local id, name, kept, claims = ARGV[2], ARGV[3], ARGV[4] == '1', ARGV[1] .. 'graceful:claims:'
if (ARGV[5] == '' or redis.call('HEXISTS', claims .. ARGV[5], ARGV[6]) == 1)
    and (redis.call('HEXISTS', key(id), 'fired:' .. name) == 1
      or redis.call('HGET', key(id), 'kind') == 'chord') then
  -- One of several tasks has failed, and who sends them may be dead: all are sent, as of any chord.
  if redis.call('HEXISTS', key(id), 'begun:' .. name) == 0 then
    redis.call('HDEL', KEYS[2], id .. ':' .. name)
  end
  if kept then
    redis.call('HDEL', key(id), 'copy:' .. name)
    redis.call('HSET', key(id), 'again:' .. name, '1')
  else
    redis.call('HDEL', key(id), 'again:' .. name)
  end
  redis.call('HSET', key(id), 'fired:' .. name, 'ended')
  moved[id] = true
  look_at(id)
end
settle_all()
-- It lives as long as the batch, which may have just begun to linger.
redis.call('PEXPIRE', key(id, 'copies'), math.max(1000, redis.call('PTTL', key(id))))
if ARGV[5] ~= '' then
  redis.call('HDEL', claims .. ARGV[5], ARGV[6])
end
return due
