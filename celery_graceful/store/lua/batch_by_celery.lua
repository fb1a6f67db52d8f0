-- A callback was sent, or dealt with, by somebody who does not ask the outbox: Celery's chords.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; name of the callback; 'published' or 'ended'
--
-- Returns whether there is such a callback.
local id, fired = ARGV[2], 'fired:' .. ARGV[3]
if redis.call('HEXISTS', key(id), 'callback:' .. ARGV[3]) == 0 then
  return 0
end
if redis.call('HGET', key(id), fired) ~= 'ended' then
  redis.call('HSET', key(id), fired, ARGV[4])
  moved[id] = true
end
redis.call('HDEL', KEYS[2], id .. ':' .. ARGV[3])
look_at(id)
settle_all()
return 1
