-- Delete the checkpoints of tasks that have ended for good.
--
-- KEYS     the hashes
-- ARGV     for each: token of the delivery that ended it, or ''; microseconds since it began
--
-- Left alone is what a later delivery has taken over. Returns how many were deleted.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local deleted = 0
for i, key in ipairs(KEYS) do
  local token, began = ARGV[2 * i - 1], now - tonumber(ARGV[2 * i])
  local fence = redis.call('HMGET', key, 'fence', 'began')
  if token == '' or fence[1] == token or not fence[1] or tonumber(fence[2]) <= began then
    deleted = deleted + redis.call('UNLINK', key)
  end
end
return deleted
