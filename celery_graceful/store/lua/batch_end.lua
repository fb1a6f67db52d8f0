-- Members end, and their messages are acknowledged.
--
-- include batch_ledger
--
-- ARGV     key prefix; five for each: batch, member, outcome, worker and number of the claim, or ''
--
-- One whose claim is gone has been dealt with by somebody else, or by this script before. Claims go
-- last: what an error breaks off is asked for again. Returns what has become due.
local claims, there, has_kids = ARGV[1] .. 'graceful:claims:', {}, {}
for i = 2, #ARGV, 5 do
  local id, member, worker = ARGV[i], ARGV[i + 1], ARGV[i + 3]
  if there[id] == nil then
    there[id] = exists(id)
    has_kids[id] = there[id] and count(id, 'kids') > 0
  end
  if there[id] and (worker == '' or redis.call('HEXISTS', claims .. worker, ARGV[i + 4]) == 1) then
    finish_member(id, member, ARGV[i + 2])
    if has_kids[id] then
      leave_kids(id, { member })
    end
    look_at(id)
  end
end
settle_all()
for i = 2, #ARGV, 5 do
  if ARGV[i + 3] ~= '' then
    redis.call('HDEL', claims .. ARGV[i + 3], ARGV[i + 4])
  end
end
return due
