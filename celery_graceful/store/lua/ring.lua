-- Ring bells, each bounded.
--
-- KEYS     the bells
-- ARGV     what with; milliseconds until it expires
for _, bell in ipairs(KEYS) do
  redis.call('LPUSH', bell, ARGV[1])
  redis.call('LTRIM', bell, 0, 15)
  redis.call('PEXPIRE', bell, ARGV[2])
end
