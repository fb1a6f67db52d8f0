-- What a task adds to a batch, and has not sent whole yet: each batch, and what it is like.
--
-- After batch_ledger. In a field of that batch, by the id of the task: run again, it finds them there.
local function being_added(id, task)
  local found = {}
  local text = redis.call('HGET', key(id), 'adding:' .. task) or ''
  for kid, like in string.gmatch(text, '(%S+) (%S+)') do
    local state, sender, run, heard = unpack(redis.call('HMGET', key(kid), 'state', 'sender', 'run', 'heard'))
    if state == 'open' or state == 'sending' then
      found[#found + 1] = { id = kid, like = like, sender = sender, run = run, heard = tonumber(heard or 0) }
    end
  end
  return found
end

local function note_added(id, task, added)
  local words = {}
  for i, one in ipairs(added) do
    words[i] = one.id .. ' ' .. one.like
  end
  if #words > 0 then
    redis.call('HSET', key(id), 'adding:' .. task, table.concat(words, ' '))
  else
    redis.call('HDEL', key(id), 'adding:' .. task)
  end
end

-- One of them has been sent whole, or never will be.
local function note_settled(id)
  local parent, task = unpack(redis.call('HMGET', key(id), 'parent', 'task'))
  if task and exists(parent) then
    note_added(parent, task, being_added(parent, task))
  end
end
