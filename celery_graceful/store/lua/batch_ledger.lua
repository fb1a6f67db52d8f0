-- What the scripts of batches share: how a member ends, what follows from it, and who hears of it.
--
-- KEYS     graceful:batches; graceful:batches:outbox
-- ARGV[1]  key prefix; the rest is told in each script
--
-- The keys of a batch, and of those around it, follow from its id. Who ends decides: that an id
-- left `pending` is what counts, and nothing is counted beside. `total` is what all sets together
-- must come to: where Redis has lost one of them, nothing is complete.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stamp = string.format('%.0f', now)

-- By which a parent outlives what is inside it, in milliseconds.
local MARGIN = 60000
local CALLBACKS = { 'on_success', 'on_complete', 'on_failure' }
local PARTS = { 'pending', 'succeeded', 'failed', 'kids', 'messages' }

local function key(id, part)
  return ARGV[1] .. 'graceful:batch:' .. id .. (part and ':' .. part or '')
end

-- The key lives for as long, at least.
local function live(name, span)
  if redis.call('PTTL', name) < span then
    redis.call('PEXPIRE', name, string.format('%.0f', span))
  end
end

-- Everything of a batch lives on, and what it is inside of lives on for longer.
local function renew(id)
  while id do
    local of = redis.call('HMGET', key(id), 'ttl', 'linger', 'lingers', 'finished', 'parent')
    if not of[1] then
      return
    end
    local span = of[3] and of[2] or of[1]
    redis.call('PEXPIRE', key(id), span)
    for _, part in ipairs(PARTS) do
      redis.call('PEXPIRE', key(id, part), span)
    end
    if not of[4] then
      live(KEYS[1], tonumber(span))
    end
    id = of[5]
  end
end

local function has_moved(id)
  redis.call('HSET', key(id), 'moved', stamp)
  redis.call('ZADD', KEYS[1], stamp, id)
end

-- What is to be looked at before the script ends, each once more if something has changed since.
local queue, queued = {}, {}
local function look_at(id)
  if not queued[id] then
    queued[id] = true
    queue[#queue + 1] = id
  end
end

-- It has not ended after all, and nor has what it is inside of.
local function reopen(id)
  while id do
    local of = redis.call('HMGET', key(id), 'finished', 'state', 'parent')
    if not of[1] then
      return
    end
    redis.call('HDEL', key(id), 'finished', 'lingers')
    if of[2] == 'done' then
      redis.call('HSET', key(id), 'state', 'sent')
    end
    has_moved(id)
    if of[3] and redis.call('EXISTS', key(of[3])) == 1 then
      redis.call('SADD', key(of[3], 'kids'), id)
    end
    id = of[3]
  end
end

-- A callback is due, the first time that it is.
local due = {}
local function fire(id, name)
  local of = redis.call('HMGET', key(id), 'callback:' .. name, 'fired:' .. name, 'ttl')
  if of[1] and not of[2] then
    redis.call('HSET', KEYS[2], id .. ':' .. name, stamp)
    live(KEYS[2], tonumber(of[3]))
    redis.call('HSET', key(id), 'fired:' .. name, 'due')
    due[#due + 1] = id .. ':' .. name
    reopen(id)
  end
end

-- A member ends: `succeeded` ends also one that had failed, and what is worse what was revoked.
local function finish_member(id, member, outcome)
  local failed = key(id, 'failed')
  local changed = false
  if outcome == 'succeeded' then
    redis.call('HDEL', key(id, 'messages'), member)
    if redis.call('SMOVE', key(id, 'pending'), key(id, 'succeeded'), member) == 1 then
      changed = true
    else
      local was = redis.call('HGET', failed, member)
      if was then
        redis.call('SADD', key(id, 'succeeded'), member)
        redis.call('HDEL', failed, member)
        if was == 'revoked' then
          redis.call('HINCRBY', key(id), 'revoked', -1)
        end
        changed = true
      end
    end
  elseif redis.call('SISMEMBER', key(id, 'pending'), member) == 1 then
    redis.call('HSET', failed, member, outcome)
    redis.call('SREM', key(id, 'pending'), member)
    if outcome == 'revoked' then
      redis.call('HINCRBY', key(id), 'revoked', 1)
    end
    changed = true
  elseif outcome == 'failed' and redis.call('HGET', failed, member) == 'revoked' then
    redis.call('HSET', failed, member, outcome)
    redis.call('HINCRBY', key(id), 'revoked', -1)
    changed = true
  end
  if changed then
    redis.call('HSET', key(id), 'moved', stamp)
    redis.call('ZADD', KEYS[1], 'XX', stamp, id)
    if outcome == 'failed' then
      fire(id, 'on_failure')
    end
  end
end

-- All callbacks that were due have ended.
local function is_quiet(id)
  for _, name in ipairs(CALLBACKS) do
    if (redis.call('HGET', key(id), 'fired:' .. name) or 'ended') ~= 'ended' then
      return false
    end
  end
  return true
end

-- It has ended: its last members, and its callbacks. What it is inside of hears it.
local function finish(id, state, parent, outcome, was)
  local clean = outcome == 'succeeded'
  if not was then
    redis.call('HSET', key(id), 'finished', stamp)
    if state == 'sent' then
      redis.call('HSET', key(id), 'state', 'done')
    end
    redis.call('ZREM', KEYS[1], id)
  end
  redis.call('HSET', key(id), 'outcome', outcome)
  if clean or state == 'cancelled' then
    redis.call('HINCRBY', key(id), 'counted', redis.call('SCARD', key(id, 'succeeded')))
    redis.call('UNLINK', key(id, 'succeeded'), key(id, 'messages'))
  end
  local has_parent = parent and redis.call('EXISTS', key(parent)) == 1
  local hopes = redis.call('HMGET', key(id), 'callback:on_success', 'hopes')
  local hopeful = not clean and state ~= 'cancelled' and (hopes[1] or hopes[2] or has_parent)
  if hopeful then
    redis.call('HDEL', key(id), 'lingers')
  else
    redis.call('HSET', key(id), 'lingers', '1')
  end
  if has_parent then
    if hopeful then
      redis.call('HSET', key(parent), 'hopes', '1')
    end
    redis.call('SREM', key(parent, 'kids'), id)
    finish_member(parent, id, outcome)
    look_at(parent)
  end
end

-- What follows from how a batch stands.
local function settle(id)
  local of = redis.call('HMGET', key(id), 'state', 'total', 'lost', 'counted', 'revoked', 'parent')
  local state, total, lost = of[1], tonumber(of[2]), tonumber(of[3] or 0)
  if not state then
    return
  end
  local failed = redis.call('HLEN', key(id, 'failed'))
  local succeeded = redis.call('SCARD', key(id, 'succeeded')) + tonumber(of[4] or 0)
  if state ~= 'open' and state ~= 'sending'
      and redis.call('SCARD', key(id, 'pending')) == 0
      and redis.call('SCARD', key(id, 'kids')) == 0
      and failed + succeeded + lost == total then
    fire(id, 'on_complete')
    local clean = failed + lost == 0 and state ~= 'cancelled'
    if clean then
      fire(id, 'on_success')
    end
    if is_quiet(id) then
      local outcome = clean and 'succeeded'
        or failed + lost > tonumber(of[5] or 0) and 'failed' or 'revoked'
      local was = redis.call('HMGET', key(id), 'finished', 'outcome', 'state')
      if not was[1] or was[2] ~= outcome then
        finish(id, was[3], of[6], outcome, was[1])
      end
    end
  end
  renew(id)
end

-- Look at all that has to be looked at. Returns what has become due.
local function settle_all()
  local i = 1
  while i <= #queue do
    queued[queue[i]] = nil
    settle(queue[i])
    i = i + 1
  end
  return due
end

-- Why nothing can be added: nil if it can.
local function refuses(id, inside)
  local state = redis.call('HGET', key(id), 'state')
  if not state then
    return 'unknown'
  end
  if state == 'sent' and inside ~= '' then
    local callback = string.match(inside, '^callback:(.*)$')
    if callback then
      state = redis.call('HGET', key(id), 'fired:' .. callback) or 'sent'
      if state == 'due' or state == 'published' then
        return nil
      end
      return 'sent'
    end
    return redis.call('SISMEMBER', key(id, 'pending'), inside) == 0 and 'sent' or nil
  end
  return state ~= 'open' and state ~= 'sending' and state or nil
end
