-- A worker, or a rescuer, meets the server: for the first time, or over a new connection.
--
-- KEYS     graceful:epoch
-- ARGV     an epoch to begin if there is none, or it is another server; which server it is, or '' where it does not say;
--          milliseconds without trust if none has been met; the same if another one has; which one
--          the process has met before, or ''
--
-- Leases that ran out say nothing of a server that has not heard all workers for as long as they
-- live. And it may have older data: started from its last snapshot, or once a replica that lagged. So
-- an epoch begins. Returns for how many milliseconds leases say nothing.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSETNX', KEYS[1], 'id', ARGV[1])
local known = redis.call('HMGET', KEYS[1], 'server', 'trust')
local trust = tonumber(known[2])
if not known[1] or (ARGV[2] ~= '' and ARGV[2] ~= known[1]) then
  local before = known[1] or ARGV[5]
  local another = ARGV[2] ~= '' and before ~= '' and before ~= ARGV[2]
  trust = now + (another and ARGV[4] or ARGV[3])
  redis.call('HSET', KEYS[1], 'server', ARGV[2], 'trust', string.format('%.0f', trust))
  if another then
    redis.call('HSET', KEYS[1], 'id', ARGV[1])
  end
end
return math.max(0, trust - now)
