-- Move messages from kombu's unacked hash back to their queues, each at most once.
--
-- KEYS[1]  unacked: delivery tag -> [message, exchange, routing key]
-- KEYS[2]  unacked_index: delivery tags by time
-- ARGV     RPUSH or LPUSH; triples: delivery tag, list of the queue, message
--
-- Consumers take from the right, so RPUSH is the head and LPUSH the tail. Returns how many were moved.
-- What cannot be put into its list, as that is none, stays where it is.
redis.call('HDEL', KEYS[1], '') -- it is a hash; and a Redis that is full does what follows as well
local moved, failure = 0, nil
for i = 2, #ARGV, 3 do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
    local pushed = redis.pcall(ARGV[1], ARGV[i + 1], ARGV[i + 2])
    if type(pushed) == 'table' then
      failure = pushed
    else
      redis.call('HDEL', KEYS[1], ARGV[i])
      redis.call('ZREM', KEYS[2], ARGV[i])
      moved = moved + 1
    end
  end
end
return failure or moved
