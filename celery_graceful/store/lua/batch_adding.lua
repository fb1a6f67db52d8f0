-- What a task adds to a batch, and has not sent whole yet: each batch, and what it is like.
--
-- After batch_ledger. In a field of that batch, by the id of the task: run again, it finds them there.
local function being_added(id, adds)
  local found = {}
  local text = redis.call('HGET', key(id), 'adding:' .. adds) or ''
  for kid, like in string.gmatch(text, '(%S+) (%S+)') do
    local state = redis.call('HGET', key(kid), 'state')
    if state == 'open' or state == 'sending' then
      found[#found + 1] = { kid, like }
    end
  end
  return found
end

local function note_added(id, adds, added)
  local words = {}
  for i, one in ipairs(added) do
    words[i] = one[1] .. ' ' .. one[2]
  end
  if #words > 0 then
    redis.call('HSET', key(id), 'adding:' .. adds, table.concat(words, ' '))
  else
    redis.call('HDEL', key(id), 'adding:' .. adds)
  end
end
