-- How a batch stands.
--
-- KEYS     the batch; its pending, succeeded, failed, revoked and kids
--
-- Returns its fields and their values, and how many there are of the others.
local answer = { redis.call('HGETALL', KEYS[1]) }
for i = 2, #KEYS do
  answer[i] = redis.call('SCARD', KEYS[i])
end
return answer
