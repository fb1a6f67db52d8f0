-- Give claims back to the lists that they came from, each at most once, and ring for them.
--
-- KEYS     claims of a worker; graceful:epoch; tombstone of the worker; which of its claims went back
-- ARGV     key prefix; RPUSH or LPUSH; bytes after which it stops; what is between a queue and a
--          priority; five for each: number of the claim, its list, the message, the epoch in which
--          it was seen as a claim, if who asks has it in memory, else ''; 'cut' if the body is
--          missing: it is that of the claim
--
-- Consumers take from the right, so RPUSH is the head and LPUSH the tail. A claim that is not
-- there is somebody else's by now, or lost with all data of its epoch: then it is only here. Asked
-- for again, or written again in the meantime, it does not go back twice. A message whose list is
-- none stays a claim. Returns how many were moved, and how many it got to.
-- include queue_of
redis.call('HDEL', KEYS[1], '') -- it is a hash; and a Redis that is full does what follows as well
local moved, bytes, failure, epoch = 0, 0, nil, redis.call('HGET', KEYS[2], 'id')
local function is_lost(of)
  return of ~= '' and of ~= epoch and redis.call('EXISTS', KEYS[3]) == 0
end
-- The message with the body of the claim, where `heads` has cut it.
local function with_body(number, text)
  local entry = redis.call('HGET', KEYS[1], number)
  if not entry then
    return text
  end
  local from = string.find(entry, '\0', 1, true) + 1
  local quote = string.find(entry, '"', from + 10, true)
  return string.sub(entry, from, quote - 1) .. string.sub(text, 11)
end
for i = 5, #ARGV, 5 do
  local text = ARGV[i + 4] == 'cut' and with_body(ARGV[i], ARGV[i + 2]) or ARGV[i + 2]
  local number, list, of = ARGV[i], ARGV[i + 1], ARGV[i + 3]
  local there = redis.call('HEXISTS', KEYS[1], number) == 1
  local goes = there or (ARGV[i + 4] ~= 'cut' and is_lost(of))
  goes = goes and redis.call('SISMEMBER', KEYS[4], number) == 0
  local pushed = goes and redis.pcall(ARGV[2], list, text)
  if type(pushed) == 'table' then
    failure, there, goes = pushed, false, false
  end
  if goes then
    if of ~= '' then
      redis.call('SADD', KEYS[4], number)
      redis.call('EXPIRE', KEYS[4], 3600)
    end
    local queue = queue_of(string.sub(list, #ARGV[1] + 1), ARGV[4])
    local bell = ARGV[1] .. 'graceful:bell:' .. queue
    if redis.call('LPUSH', bell, '') == 1 then
      redis.call('PEXPIRE', bell, 10000)
    else
      redis.call('LTRIM', bell, 0, 15)
    end
    moved = moved + 1
  end
  if there then
    redis.call('HDEL', KEYS[1], number)
  end
  bytes = bytes + #text
  if bytes >= tonumber(ARGV[3]) then
    return failure or { moved, i / 5 }
  end
end
return failure or { moved, (#ARGV - 4) / 5 }
