-- Take tasks in quarantine whose failure has not been told yet.
--
-- KEYS     untold; the quarantine
-- ARGV     how many; seconds after which somebody else may try; ids of those that others tell
--
-- Returns what is kept of them.
local now, most = redis.call('TIME')[1], tonumber(ARGV[1])
local others = {}
for i = 3, #ARGV do
  others[ARGV[i]] = true
end
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  if #taken == most then
    break
  end
  if not others[id] then
    local kept = redis.call('HGET', KEYS[2], id)
    if kept then
      redis.call('ZADD', KEYS[1], now + ARGV[2], id)
      taken[#taken + 1] = kept
    else
      redis.call('ZREM', KEYS[1], id)
    end
  end
end
return taken
