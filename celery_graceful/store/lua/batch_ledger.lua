-- What the scripts of batches share: how members end, what follows from it, and who hears of it.
--
-- KEYS     graceful:batches; graceful:batches:outbox
-- ARGV[1]  key prefix; the rest is told in each script
--
-- The keys of a batch, and of those around it, follow from its id. A member is in one of four sets, and
-- is put into the next one before it is taken off the last. What follows is worked out from how the
-- batch stands, by `settle`, not from what the script has just done: so a script that an error broke off
-- can be run again.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stamp = string.format('%.0f', now)

-- By which a parent outlives what is inside of it, and its sets a batch; and what may be missing to the
-- full span of one that has only had members that end: milliseconds.
local MARGIN, LATER, SPENT = 60000, 600000, 1000
local CALLBACKS = { 'on_success', 'on_complete', 'on_failure' }
local PARTS = { 'pending', 'succeeded', 'failed', 'revoked', 'kids', 'messages', 'places' }
-- What an outcome takes the place of: success of all, failure of what was revoked.
local INSTEAD = {
  succeeded = { 'pending', 'failed', 'revoked' },
  failed = { 'pending', 'revoked' },
  revoked = { 'pending' },
}

local function key(id, part)
  return ARGV[1] .. 'graceful:batch:' .. id .. (part and ':' .. part or '')
end

-- Whose value is the batch of that name.
local function key_named(name)
  return ARGV[1] .. 'graceful:batches:named:' .. name
end

local function exists(id)
  return redis.call('HEXISTS', key(id), 'state') == 1
end

-- How many there are in a set of a batch.
local function count(id, part)
  return redis.call('SCARD', key(id, part))
end

-- What is to be looked at before the script ends, and once more when something has changed since.
local queue, queued = {}, {}
local function look_at(id)
  if not queued[id] then
    queued[id] = true
    queue[#queue + 1] = id
  end
end

-- Batches to which something has happened.
local moved = {}

-- Whether a batch need not live on yet: all of its keys live already, and its members only end.
local may_wait = {}

-- Members end; once more, they do not. Most often all of them were pending, and each command costs.
local function finish_members(id, members, outcome)
  local after, rest = key(id, outcome), members
  for _, was in ipairs(INSTEAD[outcome]) do
    if #rest > 0 then
      local before, there, others, all = key(id, was), {}, {}, 0
      local flags = redis.call('SMISMEMBER', before, unpack(rest))
      for i = 1, #rest do
        all = all + flags[i]
      end
      if all == #rest then
        there = rest
      else
        for i = 1, #rest do
          local list = flags[i] == 1 and there or others
          list[#list + 1] = rest[i]
        end
      end
      if #there > 0 then
        -- Also a Redis that is full does this, and then all that follows in a script.
        redis.call('SMOVE', before, after, there[1])
        if #there > 1 then
          redis.call('SADD', after, unpack(there))
          redis.call('SREM', before, unpack(there))
        end
        if redis.call('SCARD', after) <= #there then
          may_wait[id] = false -- a key that is new
        end
        moved[id] = true
      end
      rest = others
    end
  end
  if outcome == 'succeeded' and #members > 0 then
    redis.call('HDEL', key(id, 'messages'), unpack(members))
  end
end

-- Some of the members that end were perhaps sent again: that they have ended is said beside it.
local function end_again(id, members)
  local name, pairs = key(id, 'resent'), {}
  for i, said in ipairs(redis.call('HMGET', name, unpack(members))) do
    if said then
      pairs[#pairs + 1], pairs[#pairs + 2] = members[i], string.match(said, '^%d+') .. ' ' .. stamp
    end
  end
  if #pairs > 0 then
    redis.call('HDEL', name, '') -- a Redis that is full does what follows as well
    redis.call('HSET', name, unpack(pairs))
  end
end

-- Members were added, when there were `before` in all sets. More than `total` says were added by a
-- script that broke off; fewer, Redis has lost.
local function known(id)
  return count(id, 'pending') + count(id, 'succeeded') + count(id, 'failed') + count(id, 'revoked')
end
local function recount(id, before)
  local total = math.max(before, tonumber(redis.call('HGET', key(id), 'total')))
  redis.call('HSET', key(id), 'total', total + known(id) - before)
  moved[id] = true
end

-- Do not wait for batches inside any more; they may still come to something.
local function leave_kids(id, kids)
  if #kids > 0 and redis.call('SREM', key(id, 'kids'), unpack(kids)) > 0 then
    redis.call('HSET', key(id), 'hopes', '1')
  end
end

-- The key lives for as long, at least.
local function live(name, span)
  if redis.call('PTTL', name) < tonumber(span) then
    redis.call('PEXPIRE', name, span)
  end
end

-- Everything of a batch lives on, and what it is inside of lives on for longer. Its sets do as well:
-- there is no batch without them, and who looks for such as stand still unlinks them when they are
-- large, which Redis by itself would not.
local renewed = {}
local function renew(id)
  while id and not renewed[id] do
    renewed[id] = true
    local of = redis.call('HMGET', key(id), 'ttl', 'linger', 'lingers', 'finished', 'parent', 'key')
    if not of[1] then
      return
    end
    local span = of[3] and of[2] or of[1]
    if may_wait[id] and redis.call('PTTL', key(id)) > span - math.min(SPENT, span / 10) then
      return -- what it is inside of has been renewed with it
    end
    redis.call('PEXPIRE', key(id), span)
    for _, part in ipairs(PARTS) do
      redis.call('PEXPIRE', key(id, part), span + LATER)
    end
    if of[6] then
      redis.call('PEXPIRE', key_named(of[6]), span)
    end
    if not of[4] then
      live(KEYS[1], span)
    end
    id = of[5]
  end
end

-- A callback is due, the first time that it is; it is in the outbox until it is published. Returns
-- what becomes of it.
local due = {}
local function fire(id, name, fired)
  local entry = id .. ':' .. name
  if (fired and fired ~= 'due') or redis.call('HEXISTS', key(id), 'callback:' .. name) == 0 then
    return fired
  end
  if not fired or redis.call('HEXISTS', KEYS[2], entry) == 0 then
    redis.call('HSET', KEYS[2], entry, stamp)
    live(KEYS[2], redis.call('HGET', key(id), 'ttl'))
    redis.call('HSET', key(id), 'fired:' .. name, 'due')
    due[#due + 1] = entry
  end
  return 'due'
end

-- All members have ended, and what is inside. Where Redis has lost a set, that cannot be known.
local function is_complete(id, state, total, lost, cleared)
  return state ~= 'open' and state ~= 'sending' and count(id, 'pending') == 0
    and count(id, 'kids') == 0 and (cleared or known(id) + (lost or 0) >= tonumber(total))
end

-- It has ended, with its callbacks. What it is inside of hears it.
local function finish(id, state, parent, outcome)
  local over = outcome == 'succeeded' or state == 'cancelled'
  local hopes = not over and ((parent and exists(parent)) or
    redis.call('HEXISTS', key(id), 'callback:on_success') == 1 or
    redis.call('HEXISTS', key(id), 'hopes') == 1)
  may_wait[id] = false
  if parent and exists(parent) then
    redis.call('SREM', key(parent, 'kids'), id)
    finish_members(parent, { id }, outcome)
    if hopes then
      redis.call('HSET', key(parent), 'hopes', '1')
    end
    look_at(parent)
  end
  if over then
    redis.call('HSETNX', key(id), 'cleared', count(id, 'revoked'))
    redis.call('UNLINK', key(id, 'succeeded'), key(id, 'revoked'), key(id, 'messages'),
      key(id, 'resent'))
  end
  if hopes then
    redis.call('HDEL', key(id), 'lingers')
  else
    redis.call('HSET', key(id), 'lingers', '1')
  end
  redis.call('ZREM', KEYS[1], id)
  redis.call('UNLINK', key(id, 'places'))
  redis.call('HSET', key(id), 'finished', stamp, 'outcome', outcome,
    'state', state == 'cancelled' and state or 'done')
end

-- It has not ended after all, and nor has what it is inside of.
local function reopen(id, state, parent)
  may_wait[id] = false
  if parent and exists(parent) then
    may_wait[parent] = false
    redis.call('SADD', key(parent, 'kids'), id)
    look_at(parent)
  end
  redis.call('HSET', key(id), 'state', state == 'done' and 'sent' or state)
  redis.call('HDEL', key(id), 'finished', 'lingers')
end

-- What follows from how a batch stands.
local function settle(id)
  local state, total, lost, cleared, cut, parent, finished, was, success, completion, failure =
    unpack(redis.call('HMGET', key(id), 'state', 'total', 'lost', 'cleared', 'cut', 'parent', 'finished',
      'outcome', 'fired:on_success', 'fired:on_complete', 'fired:on_failure'))
  if not state then
    return
  end
  local failed, clean = count(id, 'failed') + (lost or 0), false
  local complete = is_complete(id, state, total, lost, cleared)
  if failed > 0 then
    failure = fire(id, 'on_failure', failure)
  end
  if complete then
    completion = fire(id, 'on_complete', completion)
    clean = failed == 0 and not cut and state ~= 'cancelled' and count(id, 'revoked') == 0
    success = clean and fire(id, 'on_success', success) or success
  end
  if complete and (success or 'ended') == 'ended' and (completion or 'ended') == 'ended'
      and (failure or 'ended') == 'ended' then
    local outcome = clean and 'succeeded' or (failed > 0 or cut) and 'failed' or 'revoked'
    if not finished or was ~= outcome then
      finish(id, state, parent, outcome)
    elseif parent then
      look_at(parent)
    end
  else
    if finished then
      reopen(id, state, parent)
    end
    redis.call('ZADD', KEYS[1], 'NX', stamp, id)
  end
  if moved[id] then
    redis.call('HSET', key(id), 'moved', stamp)
    redis.call('ZADD', KEYS[1], 'XX', stamp, id)
  end
end

-- Look at all that has to be looked at. Returns what has become due.
local function settle_all()
  local i = 1
  while i <= #queue do
    queued[queue[i]] = nil
    settle(queue[i])
    i = i + 1
  end
  for _, id in ipairs(queue) do
    renew(id)
  end
  return due
end

-- Nothing of it is left.
local function forget(id)
  local name = redis.call('HGET', key(id), 'key')
  if name and redis.call('GET', key_named(name)) == id then
    redis.call('UNLINK', key_named(name))
  end
  redis.call('UNLINK', key(id), key(id, 'missing'), key(id, 'unsent'), key(id, 'copies'),
    key(id, 'resent'))
  for _, part in ipairs(PARTS) do
    redis.call('UNLINK', key(id, part))
  end
  for _, name in ipairs(CALLBACKS) do
    redis.call('HDEL', KEYS[2], id .. ':' .. name)
  end
  redis.call('ZREM', KEYS[1], id)
end

-- Why nothing can be added: nil if it can. Who sends all of it says as whom; not who has been
-- replaced since by another one that goes on.
local function refuses(id, inside, sender)
  local state, sends = unpack(redis.call('HMGET', key(id), 'state', 'sender'))
  if not state then
    return 'unknown'
  end
  if state == 'open' or state == 'sending' then
    return sender and sender ~= '' and sends and sender ~= sends and 'sending' or nil
  end
  if state == 'sent' and inside ~= '' then
    local callback = string.match(inside, '^callback:(.*)$')
    if callback then
      local fired = redis.call('HGET', key(id), 'fired:' .. callback)
      if fired == 'due' or fired == 'published' then
        return nil
      end
    elseif redis.call('SISMEMBER', key(id, 'pending'), inside) == 1 then
      return nil
    end
  end
  return state
end
