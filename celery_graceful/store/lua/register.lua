-- Let a worker claim, or let one that has registered go on after its lease ran out.
--
-- KEYS     graceful:workers; lease of the worker; what stays known of it when that has run out;
--          its claims; graceful:fallen; tombstone of the worker; graceful:epoch
-- ARGV     worker; heartbeat; milliseconds to live; '1' to register, whatever is known of it;
--          what to know; the epoch in which it registered, or ''; one to begin if there is none;
--          pairs: number of a claim that the server has lost, its entry
--
-- Returns 'held'; 'fallen' to a worker that was taken for dead; 'gone' to one whose claims were lost
-- with all other data, or 'older' where the last of them may be: it knows what they were, and
-- registers with them. And the epoch.
local worker, epoch = ARGV[1], redis.call('HGET', KEYS[7], 'id')
if not epoch then
  epoch = ARGV[7]
  redis.call('HSET', KEYS[7], 'id', epoch)
end
local known = redis.call('SISMEMBER', KEYS[1], worker) == 1
if not known and ARGV[4] ~= '1' then
  if redis.call('SISMEMBER', KEYS[5], worker) == 1 or redis.call('EXISTS', KEYS[6]) == 1 then
    return { 'fallen', epoch }
  end
  if epoch ~= ARGV[6] then
    return { 'gone', epoch }
  end
end
if known and ARGV[4] ~= '1' and ARGV[6] ~= '' and epoch ~= ARGV[6] then
  return { 'older', epoch }
end
if not known or ARGV[4] == '1' then
  redis.call('SADD', KEYS[1], worker)
  redis.call('SET', KEYS[3], ARGV[5])
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
for i = 8, #ARGV, 2 do
  redis.call('HSETNX', KEYS[4], ARGV[i], ARGV[i + 1])
end
return { 'held', epoch }
