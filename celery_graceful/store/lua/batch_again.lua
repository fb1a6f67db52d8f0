-- Members, or callbacks, are sent again: those that nobody has sent again lately.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; milliseconds of this clock: what was sent again since then is left alone;
--          that too which has ended, if it was sent since then, or ended later than that; members
--
-- Of each is kept when it was sent, and, behind a space, when it has ended since. Returns those that are
-- free: they are the caller's from now on. Ends look for them, once the field is there.
local id, resent, free, pairs = ARGV[2], key(ARGV[2], 'resent'), {}, {}
local since, ended_since, seen = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local ttl = redis.call('HGET', key(id), 'ttl')
if not ttl then
  return free
end
local function is_free(said)
  local sent, ended = string.match(said or '0', '^(%d+) ?(%d*)')
  if ended == '' then
    return tonumber(sent) < since
  end
  return tonumber(sent) < ended_since and tonumber(ended) <= seen
end
local members = { unpack(ARGV, 6) }
for i, said in ipairs(redis.call('HMGET', resent, unpack(members))) do
  if is_free(said) then
    free[#free + 1] = members[i]
    pairs[#pairs + 1], pairs[#pairs + 2] = members[i], stamp
  end
end
if #free > 0 then
  redis.call('HSET', key(id), 'resent', '1')
  redis.call('HSET', resent, unpack(pairs))
  redis.call('PEXPIRE', resent, ttl)
end
return free
