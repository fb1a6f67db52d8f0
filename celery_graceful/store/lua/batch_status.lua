-- How a batch stands.
--
-- KEYS     the batch; its pending, succeeded, failed, revoked and kids
-- ARGV     names of fields; of callbacks, that they are there
--
-- Returns those that are there and their values, and how many there are of the others.
local fields = {}
for i, value in ipairs(redis.call('HMGET', KEYS[1], unpack(ARGV))) do
  if value then
    fields[#fields + 1] = ARGV[i]
    fields[#fields + 1] = string.match(ARGV[i], '^callback:') and '' or value
  end
end
local answer = { fields }
for i = 2, #KEYS do
  answer[i] = redis.call('SCARD', KEYS[i])
end
return answer
