-- Judge tasks of which a broker without claims says that they were delivered before.
--
-- KEYS     the quarantine; graceful:epoch: until when a lease that is not there says nothing; three
--          for each task: 'worker|delivery' of the run that has not ended as far as is known, or
--          '=message' of one that has, and whose acknowledgement may be lost; deaths: which death
--          -> when; there while it is sent again from the quarantine, and is still in it
-- ARGV     own worker id; start of the keys of leases, with the prefix; milliseconds in which
--          deaths are counted together; milliseconds that a lease lives; the limit, 0 for none;
--          four for each task: its id; a death that is certain, or ''; the message, or ''; '1': it
--          must not run while a worker that lives runs it
--
-- A run that was left by its worker is a death if the worker is dead. One whose lease is alive
-- may have died since its last heartbeat, or have lost no more than its connection: a heartbeat
-- later it is known. Returns for each 'kept', 'ended', 'runs', 'run', 'wait' or 'poisoned', how
-- many deaths are certain, how many are not, whether one of them was not known before, and by which
-- worker the run was left, or ''.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local own, window, ttl, limit = ARGV[1], ARGV[3] / 1000, ARGV[4] / 1000, tonumber(ARGV[5])
local distrust = now * 1000 < tonumber(redis.call('HGET', KEYS[2], 'trust') or '0')
local function has_lease(worker)
  return redis.call('EXISTS', ARGV[2] .. worker) == 1
end
local function judge(started_key, deaths_key, released, id, certain_death, message, alone)
  if redis.call('HEXISTS', KEYS[1], id) == 1 and redis.call('EXISTS', released) == 0 then
    return { 'kept', 0, 0, 0, '' }
  end
  local news, left_by = 0, ''
  local function count(death)
    news = news + redis.call('ZADD', deaths_key, 'NX', string.format('%.3f', now), death)
    redis.call('PEXPIRE', deaths_key, ARGV[3])
  end
  local started = redis.call('GET', started_key)
  if started and string.sub(started, 1, 1) == '=' then
    if started == '=' .. message then
      redis.call('DEL', started_key) -- once: another message may look the same
      return { 'ended', 0, 0, 0, '' }
    end
  elseif started and string.sub(started, 1, #own + 1) ~= own .. '|' then
    local worker = string.match(started, '^(.+)|')
    if alone == '1' and worker and (distrust or has_lease(worker)) then
      return { 'runs', 0, 0, 0, '' }
    end
    left_by = worker or ''
    count(started)
  end
  if limit == 0 then
    return { 'run', 0, 0, 0, left_by }
  end
  if certain_death ~= '' then
    count(certain_death)
  end
  redis.call('ZREMRANGEBYSCORE', deaths_key, '-inf', string.format('%.3f', now - window))
  local deaths = redis.call('ZRANGE', deaths_key, 0, -1, 'WITHSCORES')
  local certain, open = 0, 0
  for i = 1, #deaths, 2 do
    local worker = string.match(deaths[i], '^(.+)|')
    local lives = worker and has_lease(worker)
    if not worker or not (lives or distrust) then
      certain = certain + 1
    elseif lives and now - deaths[i + 1] > ttl then
      redis.call('ZREM', deaths_key, deaths[i])
    else
      open = open + 1
    end
  end
  if certain >= limit then
    return { 'poisoned', certain, open, news, left_by }
  end
  if certain + open >= limit then
    return { 'wait', certain, open, news, left_by }
  end
  return { 'run', certain, open, news, left_by }
end
local found = {}
for n = 0, (#ARGV - 5) / 4 - 1 do
  local key, arg = 3 * n, 4 * n
  found[n + 1] = judge(
    KEYS[key + 3], KEYS[key + 4], KEYS[key + 5],
    ARGV[arg + 6], ARGV[arg + 7], ARGV[arg + 8], ARGV[arg + 9]
  )
end
return found
