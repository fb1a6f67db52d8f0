-- Put a message into a queue and ring its bell, for one idle worker to come.
--
-- KEYS[1]  list of the queue
-- KEYS[2]  bell of the queue
-- ARGV     message, most rings to keep, milliseconds until they expire
-- Rings first: where the user of a producer may not, nothing has been put.
local rings = redis.call('LPUSH', KEYS[2], '')
if rings == 1 then
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
elseif rings > tonumber(ARGV[2]) then
  redis.call('LPOP', KEYS[2])
end
redis.call('LPUSH', KEYS[1], ARGV[1])
