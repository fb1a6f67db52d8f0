-- Take messages off their queues and record them as claims of one worker, in one step.
--
-- keys     graceful:workers: who may claim; claims of the worker: number -> list it came from, zero
--          byte, message; then a bell for each of q queues, and p times q lists, the first priority
--          first
-- args     worker, first number, room, q, "in turn" or "in order", numbers of claims that are done
--
-- Returns false to a worker that may not claim, else pairs of the list's index and the message.
-- Takes no more of a queue than its share, with as many workers as there are: of a few messages
-- one worker must not take all while others have nothing to do. How long it takes depends on what
-- it takes, never on how long a queue is.
local function claim(keys, args)
  local worker, number, room, q = args[1], tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
  if #args > 5 then
    redis.call('HDEL', keys[2], unpack(args, 6))
  end
  if redis.call('SISMEMBER', keys[1], worker) == 0 then
    return false
  end

  local workers, more = redis.call('SCARD', keys[1]), {}
  local function share(index)
    if workers < 2 then
      return room
    end
    local length = redis.call('LLEN', keys[index])
    local fair = math.ceil(length / workers)
    if fair < length then
      more[#more + 1] = keys[3 + (index - 3 - q) % q]
    end
    return fair
  end

  local taken, claims = {}, {}
  local function take(index, most)
    if most <= 0 then
      return 0
    end
    local messages = redis.call('RPOP', keys[index], most)
    if not messages then
      return 0
    end
    for _, message in ipairs(messages) do
      taken[#taken + 1] = index
      taken[#taken + 1] = message
      claims[#claims + 1] = number
      claims[#claims + 1] = keys[index] .. '\0' .. message
      number = number + 1
    end
    room = room - #messages
    return #messages
  end

  for first = 3 + q, #keys, q do
    if q == 1 or args[5] == 'in order' then
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
    redis.call('HSET', keys[2], unpack(claims))
  end
  if room > 0 then
    if #more == 0 then
      -- All queues are empty: what was rung for is here.
      redis.call('DEL', unpack(keys, 3, 2 + q))
    end
    for _, bell in ipairs(more) do
      redis.call('LPUSH', bell, '')
      redis.call('LTRIM', bell, 0, 15)
      redis.call('PEXPIRE', bell, 10000)
    end
  end
  return taken
end
