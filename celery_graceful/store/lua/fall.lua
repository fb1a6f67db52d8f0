-- Take a worker for dead, if its lease has run out where leases say something.
--
-- KEYS     graceful:workers; lease of the worker; graceful:fallen; its tombstone; graceful:epoch;
--          lease of the one who asks, if that has one
-- ARGV     worker; milliseconds that the tombstone stands; the server that it asks, as far as it
--          knows
--
-- From here on the worker claims nothing more. Returns 1 if it has fallen now, -1 if nobody may
-- say so here: another server stands behind the name, or it has not heard the one who asks.
local known = redis.call('HMGET', KEYS[5], 'server', 'trust')
local time = redis.call('TIME')
if not known[2] or (ARGV[3] ~= '' and ARGV[3] ~= known[1])
    or time[1] * 1000 + time[2] / 1000 < tonumber(known[2])
    or (KEYS[6] and redis.call('EXISTS', KEYS[6]) == 0) then
  return -1
end
if redis.call('EXISTS', KEYS[2]) == 1 or redis.call('SREM', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('SET', KEYS[4], '', 'PX', ARGV[2])
return 1
