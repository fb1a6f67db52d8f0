-- Take tasks in quarantine whose failure has not been told yet.
--
-- KEYS     untold; the quarantine
-- ARGV     how many; seconds after which somebody else may try
--
-- Returns what is kept of them.
local now = redis.call('TIME')[1]
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local kept = redis.call('HGET', KEYS[2], id)
  if kept then
    redis.call('ZADD', KEYS[1], now + ARGV[2], id)
    taken[#taken + 1] = kept
  else
    redis.call('ZREM', KEYS[1], id)
  end
end
return taken
