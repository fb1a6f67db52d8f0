-- Load or save the checkpoint of one task, on behalf of one delivery.
--
-- KEYS[1]  the hash: see the legend in store.py
-- ARGV     token of the delivery; microseconds since it began, or `@` and when that was, as an
--          earlier call has said; milliseconds to live;
--          '1' to get all fields back; how often it was interrupted since the last call;
--          how many fields to set; how many tasks the task has replaced (`self.replace`); 'own' of
--          a delivery that has saved, or taken over, what is there; 'whole' if it gives all of it
--          again; 'first' of one that none seems to have come before; or ''; names and values of
--          fields to set; names of fields to delete
--
-- Two deliveries of one id may run at once, and the end of one deletes what the other has saved. So
-- if 'own' is not there, nothing is done, and 0 returned: what is set would be all that there is. To
-- a 'first' one that is said of what another has saved: most often it has ended, and that goes soon.
-- Its interruption is counted there all the same, and no more: nobody may have said that it came back.
--
-- What replaces a task has its id, so this hash, and begins anew: what the replaced one has saved
-- goes, and so does its fence, for it may not have ended yet.
--
-- A run that began before the one that holds the fence has lost its claim: nothing is done
-- and nothing returned. The server's clock decides, so the clocks of workers do not matter. Asked
-- once a run: a call that is under way for long would have it begin later, and the fence pass on.
-- Returns the count of interruptions, the fields that were asked for, and when the run began.
local key, token = KEYS[1], ARGV[1]
local began = tonumber(string.match(ARGV[2], '^@(%d+)$'))
if not began then
  local time = redis.call('TIME')
  began = time[1] * 1000000 + time[2] - tonumber(ARGV[2])
end
local fence = redis.call('HMGET', key, 'fence', 'began', 'replaced')
local replaced, there = tonumber(ARGV[7]), tonumber(fence[3] or '0')
if there > replaced then
  return false
elseif there < replaced then
  redis.call('UNLINK', key)
  fence = {}
end
if fence[1] and fence[1] ~= token and tonumber(fence[2]) > began then
  return false
end
if fence[1] ~= token and (ARGV[8] == 'own' or (fence[1] and ARGV[8] == 'first')) then
  if ARGV[8] == 'first' and ARGV[5] ~= '0' then
    return { redis.call('HINCRBY', key, 'interruptions', ARGV[5]), {}, began }
  end
  return 0
end
if ARGV[8] == 'whole' then
  redis.call('UNLINK', key)
  fence = {}
end
local last = 8 + 2 * tonumber(ARGV[6])
for i = 9, last, 2 do
  redis.call('HSET', key, ARGV[i], ARGV[i + 1])
end
for i = last + 1, #ARGV do
  redis.call('HDEL', key, ARGV[i])
end
local interruptions
if ARGV[5] ~= '0' then
  interruptions = redis.call('HINCRBY', key, 'interruptions', ARGV[5])
else
  interruptions = tonumber(redis.call('HGET', key, 'interruptions') or '0')
end
-- A task that has saved nothing leaves nothing.
if redis.call('EXISTS', key) == 1 then
  if fence[1] ~= token then
    redis.call('HSET', key, 'fence', token, 'began', string.format('%.0f', began))
    if replaced > 0 then
      redis.call('HSET', key, 'replaced', replaced)
    end
  end
  redis.call('PEXPIRE', key, ARGV[3])
end
local fields = {}
if ARGV[4] == '1' then
  fields = redis.call('HGETALL', key)
end
return { interruptions, fields, began }
