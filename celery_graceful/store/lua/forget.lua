-- Delete the checkpoints of tasks that have ended for good.
--
-- KEYS     the hashes
-- ARGV     for each: token of the delivery that ended it; microseconds since it began, or '' if none
--          of its task came before it
--
-- Left alone is what a later delivery has taken over, and by one that none came before all that is
-- not its own: another message of that id may be running. Returns how many were deleted.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local deleted = 0
for i, key in ipairs(KEYS) do
  local token, age = ARGV[2 * i - 1], tonumber(ARGV[2 * i])
  local fence = redis.call('HMGET', key, 'fence', 'began')
  if fence[1] == token or not fence[1] or (age and tonumber(fence[2]) <= now - age) then
    deleted = deleted + redis.call('UNLINK', key)
  end
end
return deleted
