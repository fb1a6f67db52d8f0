-- All members have been sent: from now on it may be complete.
--
-- include batch_ledger
-- include batch_adding
--
-- ARGV     key prefix; batch; who has sent it, or '' for whoever does
--
-- Asked again, or of one that was cancelled, it only looks. Returns what has become due, or why it
-- is not for them to say.
local id = ARGV[2]
local state = redis.call('HGET', key(id), 'state')
if not state then
  return 'unknown'
end
if state == 'open' or state == 'sending' then
  local refused = refuses(id, '', ARGV[3])
  if refused then
    return refused
  end
  redis.call('HSET', key(id), 'state', 'sent')
  redis.call('UNLINK', key(id, 'places'))
  moved[id] = true
end
note_settled(id)
look_at(id)
return settle_all()
