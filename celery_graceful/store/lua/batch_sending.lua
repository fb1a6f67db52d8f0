-- Sending begins, or goes on.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch; who sends it, if that is told: whoever did so before does not any more
--
-- Returns why it cannot, or ''.
local id = ARGV[2]
local refused = refuses(id, '')
if refused then
  return refused
end
redis.call('HSET', key(id), 'state', 'sending', 'heard', stamp)
if ARGV[3] ~= '' then
  redis.call('HSET', key(id), 'sender', ARGV[3])
end
moved[id] = true
look_at(id)
settle_all()
return ''
