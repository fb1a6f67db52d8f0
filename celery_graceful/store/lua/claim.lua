-- Take messages off their queues and record them as claims of one worker, in one step.
--
-- KEYS     graceful:workers: who may claim; claims of the worker: number -> list it came from, zero
--          byte, message; then a bell for each of q queues, and p times q lists, the first priority
--          first
-- ARGV     worker, first number, room, q, "in turn" or "in order", numbers of claims that are done
--
-- Returns false to a worker that may not claim, else pairs of the list's index and the message. What
-- cannot be read, as a key is no list, ends it; not what was taken before: that is claimed.
-- Takes no more of a queue than its share, with as many workers as there are: of a few messages
-- one worker must not take all while others have nothing to do. How long it takes depends on what
-- it takes, never on how long a queue is.
local worker, number, room, q = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if #ARGV > 5 then
  redis.call('HDEL', KEYS[2], unpack(ARGV, 6))
end
if redis.call('SISMEMBER', KEYS[1], worker) == 0 then
  return false
end

redis.call('HLEN', KEYS[2]) -- fails before anything is taken

local workers, more, failure = redis.call('SCARD', KEYS[1]), {}, nil
local function ask(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then
    failure, room = answer, 0
    return false
  end
  return answer
end
local function share(index)
  if workers < 2 then
    return room
  end
  local length = ask('LLEN', KEYS[index]) or 0
  local fair = math.ceil(length / workers)
  if fair < length then
    more[#more + 1] = KEYS[3 + (index - 3 - q) % q]
  end
  return fair
end

local taken, claims = {}, {}
local function take(index, most)
  if most <= 0 then
    return 0
  end
  local messages = ask('RPOP', KEYS[index], most)
  if not messages then
    return 0
  end
  for _, message in ipairs(messages) do
    taken[#taken + 1] = index
    taken[#taken + 1] = message
    claims[#claims + 1] = number
    claims[#claims + 1] = KEYS[index] .. '\0' .. message
    number = number + 1
  end
  room = room - #messages
  return #messages
end

for first = 3 + q, #KEYS, q do
  if q == 1 or ARGV[5] == 'in order' then
    for index = first, first + q - 1 do
      if room > 0 then
        take(index, math.min(room, share(index)))
      end
    end
  else
    local left, shares = {}, {}
    for index = first, first + q - 1 do
      left[#left + 1] = index
      shares[index] = share(index)
    end
    while room > 0 and #left > 0 do
      local still = {}
      for _, index in ipairs(left) do
        if room > 0 and shares[index] > 0 and take(index, 1) == 1 then
          shares[index] = shares[index] - 1
          still[#still + 1] = index
        end
      end
      left = still
    end
  end
  if room <= 0 then
    break
  end
end

if #claims > 0 then
  redis.call('HSET', KEYS[2], unpack(claims))
elseif failure then
  return failure
end
if room > 0 then
  if #more == 0 then
    -- All queues are empty: what was rung for is here.
    redis.call('DEL', unpack(KEYS, 3, 2 + q))
  end
  for _, bell in ipairs(more) do
    redis.call('LPUSH', bell, '')
    redis.call('LTRIM', bell, 0, 15)
    redis.call('PEXPIRE', bell, 10000)
  end
end
return taken
