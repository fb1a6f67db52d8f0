-- Say of members that were registered whether somebody failed to send them.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; '1' failed, '' they are sent; members
local id, unsent = ARGV[2], key(ARGV[2], 'unsent')
if ARGV[3] == '' then
  redis.call('SREM', unsent, unpack(ARGV, 4))
elseif exists(id) then
  redis.call('SADD', unsent, unpack(ARGV, 4))
  redis.call('PEXPIRE', unsent, redis.call('HGET', key(id), 'ttl'))
end
return 1
