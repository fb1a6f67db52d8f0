-- Messages whose task no worker here knows yet: how they are set aside, and how they leave.
--
-- KEYS[1]  kinds: a queue, zero byte, the name of a task -> how many of its messages wait
-- KEYS[2]  messages: entry -> queue, zero byte, name, zero byte, task id, zero byte, message
-- KEYS[3]  due: entry -> when it goes back to its queue, seconds of the server's clock
-- KEYS[4]  claims of a worker (wait, take); graceful:workers (take) is KEYS[5]
-- ARGV     key prefix; the command; its arguments
--
-- A message is what a claim is (the list that it came from, zero byte, the message), or, of brokers
-- without claims, JSON. Each kind has a sorted set: entry -> from when on somebody may take it.
-- When a message came here for the first time is kept beside it, by the id of its task, also while
-- it is back in its queue: its age makes the pause until it goes back, and ends its patience.
-- It is a number, which is all that the oldest version can read; some wrote the delivery behind it.
-- Which delivery set it aside last has a key of its own: whoever got no answer asks again.
-- include queue_of
local prefix, command = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000

local function stamp(seconds)
  return string.format('%.6f', seconds)
end

local function of(kind)
  return KEYS[1] .. ':of:' .. kind
end

local function since(id)
  return prefix .. 'graceful:waited:' .. id
end

local function asked(id)
  return prefix .. 'graceful:aside:' .. id
end

local function cut(text)
  local at = string.find(text, '\0', 1, true)
  return string.sub(text, 1, at - 1), string.sub(text, at + 1)
end

-- Kind, task id and message of an entry, if it is there.
local function read(entry)
  local value = redis.call('HGET', KEYS[2], entry)
  if not value then
    return nil
  end
  local queue, name, id, message
  queue, value = cut(value)
  name, value = cut(value)
  id, message = cut(value)
  return queue .. '\0' .. name, id, message
end

-- Take an entry out, which `read` has read.
local function take(entry, kind)
  redis.call('ZREM', KEYS[3], entry)
  if not kind then
    return
  end
  redis.call('HDEL', KEYS[2], entry)
  redis.call('ZREM', of(kind), entry)
  if redis.call('HINCRBY', KEYS[1], kind, -1) <= 0 then
    redis.call('HDEL', KEYS[1], kind)
  end
end

-- One round of going back in a while, whoever asks.
local function turn(milliseconds)
  return milliseconds == '0' or redis.call('SET', KEYS[1] .. ':turn', '', 'NX', 'PX', milliseconds)
end

-- wait: seconds that one may wait; milliseconds that its age is kept; what is between a queue and a
-- priority; of each: number of its claim, or ''; entry; queue; name; task id; message, if there is no
-- claim; '1' if it may be here; the delivery. Answers for each 'waits', 'over' (it has waited for
-- long enough: nothing is done) or 'gone'. Of what a key of another type keeps from it nothing is
-- done, either.
if command == 'wait' then
  local answers = {}
  redis.call('HLEN', KEYS[1])
  redis.call('HLEN', KEYS[2])
  redis.call('ZCARD', KEYS[3])
  for i = 6, #ARGV, 8 do
    local number, entry, queue = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local name, id, message = ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]
    local delivery = ARGV[i + 7]
    if number ~= '' then
      message = redis.call('HGET', KEYS[4], number)
      if message then
        queue = queue_of(string.sub(cut(message), #prefix + 1), ARGV[5])
      end
    end
    local seen = redis.call('GET', since(id)) or ''
    local first = tonumber(string.match(seen, '^[^ ]+')) or now
    local last = number == '' and (redis.call('GET', asked(id)) or string.match(seen, ' (.*)$'))
    local answer = 'waits'
    if not message then
      answer = 'gone'
    elseif last == delivery then
      answer = 'waits'  -- it was set aside when it was asked first, and may have gone by now
    elseif now - first >= tonumber(ARGV[3]) then
      answer = 'over'
    else
      local kind = queue .. '\0' .. name
      redis.call('ZCARD', of(kind))
      if redis.call('HEXISTS', KEYS[2], entry) == 1 then
        if ARGV[i + 6] == '1' then
          -- Set aside by a worker that had no time to acknowledge it; or lent, and what was sent
          -- is this.
          take(entry, (read(entry)))
        else
          entry = entry .. '/' .. stamp(now) .. '/' .. i
        end
      end
      if number ~= '' then
        redis.call('HDEL', KEYS[4], '') -- a Redis that is full does what follows as well
      end
      local value = table.concat({ kind, id, message }, '\0')
      redis.call('HSET', KEYS[2], entry, value)
      local pause = math.min(math.max(now - first, 1), 30)
      local turn = i / 1000000  -- in their order
      redis.call('ZADD', KEYS[3], stamp(math.min(now + pause, first + ARGV[3]) + turn), entry)
      redis.call('ZADD', of(kind), stamp(now + turn), entry)
      redis.call('HINCRBY', KEYS[1], kind, 1)
      redis.call('SET', since(id), stamp(first), 'PX', ARGV[4])
      if number == '' then
        redis.call('SET', asked(id), delivery, 'PX', ARGV[4])
      else -- last: what an error breaks off is asked for again
        redis.call('HDEL', KEYS[4], number)
      end
    end
    answers[#answers + 1] = answer
  end
  return answers
end

-- take: worker; first number; kind; how many. They become claims of the worker, which knows the
-- name; answers with pairs of the list that one came from, and the message.
if command == 'take' then
  local found, number = {}, tonumber(ARGV[4])
  if redis.call('SISMEMBER', KEYS[5], ARGV[3]) == 0 then
    return found
  end
  for _, entry in ipairs(redis.call('ZRANGE', of(ARGV[5]), 0, ARGV[6] - 1)) do
    local kind, id, message = read(entry)
    if kind then
      redis.call('HDEL', KEYS[4], '') -- a Redis that is full does what follows as well
      redis.call('HSET', KEYS[4], number, message)
      take(entry, kind)
      redis.call('DEL', since(id))
      number = number + 1
      local list, text = cut(message)
      found[#found + 1] = list
      found[#found + 1] = text
    else
      redis.call('ZREM', KEYS[3], entry)
      redis.call('ZREM', of(ARGV[5]), entry)
    end
  end
  return found
end

-- back: milliseconds of a round; how many; 'due', or 'all'. They go back to the head of the lists
-- that they came from, for workers that know their names and nothing of this.
if command == 'back' then
  if not turn(ARGV[3]) then
    return 0
  end
  local last = ARGV[5] == 'all' and '+inf' or stamp(now)
  local entries = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', last, 'LIMIT', 0, ARGV[4])
  redis.call('HDEL', KEYS[2], '') -- a Redis that is full does what follows as well
  local failure
  for i = #entries, 1, -1 do
    local kind, _, message = read(entries[i])
    local list, text
    if kind then
      list, text = cut(message)
      local pushed = redis.pcall('RPUSH', list, text)
      if type(pushed) == 'table' then
        failure, list = pushed, nil
        redis.call('ZADD', KEYS[3], stamp(now + 30), entries[i])
      end
    end
    if list or not kind then
      take(entries[i], kind)
    end
    if list then
      local bell = prefix .. 'graceful:bell:' .. cut(kind)
      redis.call('LPUSH', bell, '')
      redis.call('LTRIM', bell, 0, 15)
      redis.call('PEXPIRE', bell, 10000)
    end
  end
  return failure or #entries
end

-- lend: milliseconds of a round; how many; seconds for which nobody else gets them; kind, or ''
-- for those that are due. Answers with pairs of a loan and a message, to be sent and then dropped.
if command == 'lend' then
  local found = {}
  if not turn(ARGV[3]) then
    return found
  end
  local key, until_ = ARGV[6] == '' and KEYS[3] or of(ARGV[6]), stamp(now + ARGV[5])
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', stamp(now), 'LIMIT', 0, ARGV[4])) do
    local value = redis.call('HGET', KEYS[2], entry)
    if value then
      local queue, name, rest
      queue, rest = cut(value)
      name, rest = cut(rest)
      local _, message = cut(rest)
      redis.call('ZADD', KEYS[3], until_, entry)
      redis.call('ZADD', of(queue .. '\0' .. name), until_, entry)
      found[#found + 1] = until_ .. ' ' .. entry
      found[#found + 1] = message
    else
      redis.call('ZREM', key, entry)
    end
  end
  return found
end

-- drop: loans of what has been sent. Another one of its name may be there by now, and that it was
-- asked to do so before is not to be seen.
for i = 3, #ARGV do
  local until_, entry = string.match(ARGV[i], '^([^ ]+) (.*)$')
  if tonumber(redis.call('ZSCORE', KEYS[3], entry) or '') == tonumber(until_) then
    take(entry, (read(entry)))
  end
end
return #ARGV - 2
