-- Open a batch, inside of another one if it has a parent.
--
-- include batch_ledger
-- include batch_adding
--
-- ARGV     key prefix; id; its parent, or ''; who adds it there, or ''; time to live and linger, in
--          milliseconds; who sends it from now on, or '': nobody does yet; the task that adds it, or
--          '', what it is like, which run of that task, and for how many milliseconds who sends one
--          may be silent (0: for ever); its place in what is sent to its parent, or '', and by whom;
--          its key, or ''; its fields and their values
--
-- Asked again it only looks. Where that task has added one like it before, of which not all was
-- sent, and which nobody sends any more, it is that one: the task is run again. Where one stands in
-- that place already it is that one: its parent is sent again. Where there is one of that key it is
-- that one. Returns why it cannot be inside of that parent ('busy': perhaps another run sends one
-- like it, or another producer the one of that key), or '', the id, and the state that it was in, ''
-- of a new one.
local id, parent, ttl, linger = ARGV[2], ARGV[3], tonumber(ARGV[5]), tonumber(ARGV[6])
local sender, task, like, run, silent = ARGV[7], ARGV[8], ARGV[9], ARGV[10], tonumber(ARGV[11])
local place, name = ARGV[12], ARGV[14]
local function note_place(one)
  if place ~= '' then
    redis.call('HSET', key(parent, 'places'), place, one)
  end
end
-- It goes on, if not all of it was sent. Else it lives no longer for being asked for.
local function taken(one)
  local state = redis.call('HGET', key(one), 'state')
  note_place(one)
  if state == 'open' or state == 'sending' then
    if sender ~= '' then
      redis.call('HSET', key(one), 'state', 'sending', 'sender', sender, 'heard', stamp, 'run', run)
    end
    look_at(one)
    settle_all()
  end
  return { '', one, state or 'cancelled' }
end
local there = exists(id)
local refused = parent ~= '' and (place ~= '' or not there) and refuses(parent, ARGV[4], ARGV[13])
if refused then
  return { refused, id, '' }
end
local standing = place ~= '' and redis.call('HGET', key(parent, 'places'), place)
if there or standing then
  return taken(there and id or standing)
end
local of_key = name ~= '' and redis.call('GET', key_named(name))
if of_key and exists(of_key) then
  local state, sends, heard = unpack(redis.call('HMGET', key(of_key), 'state', 'sender', 'heard'))
  if (state == 'open' or state == 'sending') and sends and sends ~= sender and now - (heard or 0) < silent then
    return { 'busy', of_key, '' }
  end
  return taken(of_key)
end
local fields = { 'state', sender == '' and 'open' or 'sending', 'total', 0, 'created', stamp, 'moved', stamp,
  'ttl', ARGV[5], 'linger', ARGV[6], unpack(ARGV, 15) }
local function add_field(name, value)
  fields[#fields + 1], fields[#fields + 2] = name, value
end
if sender ~= '' then
  add_field('sender', sender)
  add_field('heard', stamp)
end
if parent ~= '' and task ~= '' then
  local added, busy = being_added(parent, task), false
  for _, one in ipairs(added) do
    if one.like == like then
      local is_others = one.run ~= run and silent > 0
      if not one.sender or one.sender == sender or (is_others and now - one.heard >= silent) then
        return taken(one.id)
      end
      busy = busy or is_others
    end
  end
  if busy then
    return { 'busy', id, '' }
  end
  added[#added + 1] = { id = id, like = like }
  note_added(parent, task, added)
  add_field('task', task)
  add_field('adds', ARGV[4])
  add_field('run', run)
end
-- What it is inside of lives longer.
local above, least = parent, { ttl = math.max(ttl, linger), linger = linger }
while above and above ~= '' do
  local of = redis.call('HMGET', key(above), 'ttl', 'linger', 'parent')
  if not of[1] then
    break
  end
  for i, name in ipairs({ 'ttl', 'linger' }) do
    least[name] = math.max(least[name] + MARGIN, tonumber(of[i]))
    redis.call('HSET', key(above), name, string.format('%.0f', least[name]))
  end
  above = of[3]
end
if parent ~= '' then
  local before = known(parent)
  local new = redis.call('SADD', key(parent, 'pending'), id)
  if place == '' then
    redis.call('HINCRBY', key(parent), 'inside', new)
  end
  redis.call('SADD', key(parent, 'kids'), id)
  recount(parent, before)
  look_at(parent)
  add_field('parent', parent)
end
if name ~= '' then
  add_field('key', name)
  redis.call('SET', key_named(name), id)
end
redis.call('HSET', key(id), unpack(fields))
note_place(id)
moved[id] = true
look_at(id)
settle_all()
return { '', id, '' }
