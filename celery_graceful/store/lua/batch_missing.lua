-- Write down how many members of a batch were found missing.
--
-- KEYS     the batch
-- ARGV     how many
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'missing', ARGV[1])
end
