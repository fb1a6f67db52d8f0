-- Who publishes a callback in several steps begins, or goes on.
--
-- KEYS     the batch; graceful:batches:outbox
-- ARGV     batch; name of the callback; milliseconds for which others leave it alone then; '1' if who
--          asks does so already
--
-- Returns whether it is to be published by them: it is in the outbox, and nobody else does so.
local field, span = 'publishing:' .. ARGV[2], tonumber(ARGV[3])
if redis.call('HEXISTS', KEYS[2], ARGV[1] .. ':' .. ARGV[2]) == 0 then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local before = redis.call('HGET', KEYS[1], field)
if ARGV[4] == '' and before and now - before < span then
  return 0
end
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], field, string.format('%.0f', now))
end
return 1
