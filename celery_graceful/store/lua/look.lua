-- Ring for what waits in queues, where no ring waits yet.
--
-- KEYS     a bell for each of q queues, then p times q lists
-- ARGV     q; rings for each; milliseconds until they expire
--
-- Returns for how many queues it rang: of each one worker comes, which rings on if there is more.
local q, rang = tonumber(ARGV[1]), 0
for i = 1, q do
  local lists = {}
  for index = i + q, #KEYS, q do
    lists[#lists + 1] = KEYS[index]
  end
  if redis.call('EXISTS', KEYS[i]) == 0 and redis.call('EXISTS', unpack(lists)) > 0 then
    for _ = 1, tonumber(ARGV[2]) do
      redis.call('LPUSH', KEYS[i], '')
    end
    redis.call('PEXPIRE', KEYS[i], ARGV[3])
    rang = rang + 1
  end
end
return rang
