-- Members end, and their messages are acknowledged.
--
-- include batch_ledger
--
-- ARGV     key prefix; five for each: batch, member, outcome, worker and number of the claim, or ''
--
-- One whose claim is gone has been dealt with by somebody else, or by this script before. Of a
-- batch that is not known, or a member that has ended, only the claim goes; but the batch is looked
-- at, in case that an error came in between. Returns what has become due.
for i = 2, #ARGV, 5 do
  local id, claims = ARGV[i], ARGV[1] .. 'graceful:claims:' .. ARGV[i + 3]
  if ARGV[i + 3] == '' or redis.call('HEXISTS', claims, ARGV[i + 4]) == 1 then
    if redis.call('EXISTS', key(id)) == 1 then
      finish_member(id, ARGV[i + 1], ARGV[i + 2])
      look_at(id)
    end
  end
end
settle_all()
for i = 2, #ARGV, 5 do
  if ARGV[i + 3] ~= '' then
    redis.call('HDEL', ARGV[1] .. 'graceful:claims:' .. ARGV[i + 3], ARGV[i + 4])
  end
end
return due
