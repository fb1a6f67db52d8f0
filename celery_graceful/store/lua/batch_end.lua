-- Members end, and their messages are acknowledged.
--
-- include batch_ledger
--
-- ARGV     key prefix; the ends
--
-- These are JSON, a list for each batch, outcome and worker: these three, members, and the numbers of
-- their claims. Worker '': there are none. JSON, since one argument is read, and written, in a fraction
-- of the time of many. One whose claim is gone has been dealt with by somebody else, or by this script
-- before. Claims go last: what an error breaks off is asked for again. Returns what has become due,
-- and which batches are not cancelled.
local going, claims, ends = {}, ARGV[1] .. 'graceful:claims:', cjson.decode(ARGV[2])
for _, of in ipairs(ends) do
  local id, outcome, worker, members, numbers = unpack(of)
  local state, resent = unpack(redis.call('HMGET', key(id), 'state', 'resent'))
  if state then
    if state ~= 'cancelled' then
      going[#going + 1] = id
    end
    local ended = worker == '' and members or {}
    if worker ~= '' then
      local mine = claims .. worker
      for i, number in ipairs(numbers) do
        if redis.call('HEXISTS', mine, number) == 1 then
          ended[#ended + 1] = members[i]
        end
      end
    end
    if #ended > 0 then
      if may_wait[id] == nil then
        may_wait[id] = true
      end
      finish_members(id, ended, outcome)
      if resent then
        end_again(id, ended)
      end
      if count(id, 'kids') > 0 then
        leave_kids(id, ended)
      end
      look_at(id)
    end
  end
end
settle_all()
for _, of in ipairs(ends) do
  if of[3] ~= '' then
    redis.call('HDEL', claims .. of[3], unpack(of[5]))
  end
end
return { due, going }
