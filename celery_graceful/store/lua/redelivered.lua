-- Judge a task of which a broker without claims says that it was delivered before.
--
-- KEYS[1]  started: 'worker|delivery' of the run that has not ended as far as is known, or
--          '=message' of one that has, and whose acknowledgement may be lost
-- KEYS[2]  deaths: which death -> when
-- KEYS[3]  the quarantine
-- KEYS[4]  graceful:epoch: until when a lease that is not there says nothing
-- KEYS[5]  there while it is sent again from the quarantine, and is still in it
-- ARGV     task id; own worker id; start of the keys of leases, with the prefix; milliseconds
--          in which deaths are counted together; milliseconds that a lease lives; the limit, 0
--          for none; a death that is certain, or ''; the message, or ''; '1': it must not run
--          while a worker that lives runs it
--
-- A run that was left by its worker is a death if the worker is dead. One whose lease is alive
-- may have died since its last heartbeat, or have lost no more than its connection: a heartbeat
-- later it is known. Returns 'kept', 'ended', 'runs', 'run', 'wait' or 'poisoned', how many deaths
-- are certain, how many are not, whether one of them was not known before, and by which worker the
-- run was left, or ''.
if redis.call('HEXISTS', KEYS[3], ARGV[1]) == 1 and redis.call('EXISTS', KEYS[5]) == 0 then
  return { 'kept', 0, 0, 0, '' }
end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local window, ttl, limit = ARGV[4] / 1000, ARGV[5] / 1000, tonumber(ARGV[6])
local news, left_by = 0, ''
local distrust = now * 1000 < tonumber(redis.call('HGET', KEYS[4], 'trust') or '0')
local function has_lease(worker)
  return redis.call('EXISTS', ARGV[3] .. worker) == 1
end
local function count(death)
  news = news + redis.call('ZADD', KEYS[2], 'NX', string.format('%.3f', now), death)
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
local started = redis.call('GET', KEYS[1])
if started and string.sub(started, 1, 1) == '=' then
  if started == '=' .. ARGV[8] then
    redis.call('DEL', KEYS[1]) -- once: another message may look the same
    return { 'ended', 0, 0, 0, '' }
  end
elseif started and string.sub(started, 1, #ARGV[2] + 1) ~= ARGV[2] .. '|' then
  local worker = string.match(started, '^(.+)|')
  if ARGV[9] == '1' and worker and (distrust or has_lease(worker)) then
    return { 'runs', 0, 0, 0, '' }
  end
  left_by = worker or ''
  count(started)
end
if limit == 0 then
  return { 'run', 0, 0, 0, left_by }
end
if ARGV[7] ~= '' then
  count(ARGV[7])
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.3f', now - window))
local deaths = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
local certain, open = 0, 0
for i = 1, #deaths, 2 do
  local worker = string.match(deaths[i], '^(.+)|')
  local lives = worker and has_lease(worker)
  if not worker or not (lives or distrust) then
    certain = certain + 1
  elseif lives and now - deaths[i + 1] > ttl then
    redis.call('ZREM', KEYS[2], deaths[i])
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
