-- Move messages from kombu's unacked hash back to their queues, each at most once.
--
-- KEYS[1]  unacked: delivery tag -> [message, exchange, routing key]
-- KEYS[2]  unacked_index: delivery tags by time
-- ARGV     RPUSH or LPUSH; triples: delivery tag, list of the queue, message
--
-- Consumers take from the right, so RPUSH is the head and LPUSH the tail. Returns how many were moved.
local moved = 0
for i = 2, #ARGV, 3 do
  if redis.call('HDEL', KEYS[1], ARGV[i]) == 1 then
    redis.call('ZREM', KEYS[2], ARGV[i])
    redis.call(ARGV[1], ARGV[i + 1], ARGV[i + 2])
    moved = moved + 1
  end
end
return moved
