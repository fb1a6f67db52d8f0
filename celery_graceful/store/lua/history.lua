-- Enter moments into the stream of the fleet, and into the lists of their tasks.
--
-- KEYS     the fleet's stream; the lists of tasks: a stream of one entry would take 5 KB
-- ARGV     entries of the fleet's, about; entries of a task's; milliseconds to live; then, for each
--          moment, the place of its task's list among the keys (0: none) and the entry
for at = 4, #ARGV, 2 do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'm', ARGV[at + 1])
  local own = KEYS[tonumber(ARGV[at])]
  if own then
    redis.call('RPUSH', own, ARGV[at + 1])
    redis.call('LTRIM', own, -tonumber(ARGV[2]), -1)
  end
end
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, ARGV[3])
end
return #KEYS
