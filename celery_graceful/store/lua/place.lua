-- Where in a list the message of a task is, counted from the right, where consumers take.
--
-- KEYS[1]  a list of messages; a key of another type has none
-- ARGV     id of the task; how many from the right were looked at before; bytes after which it stops
--
-- Returns the place, 0 if it was not found yet; how many were looked at now; how many there are; and
-- the name of the task, '' if it does not say. A body is passed over by `find`, as fast as memory is read: what it says is escaped, or base 64.
-- include json_string

-- The next string of that name in a message, and where to look on; nil at the end.
local function field(text, name, at)
  local _, last = string.find(text, name, at, true)
  if last then
    local from = string.match(text, '^%s*:%s*()"', last + 1)
    return from and json_string(text, from) or '', last + 1
  end
end

local function is_sought(text)
  local id, at = field(text, '"id"', 1)
  while id and id ~= ARGV[1] do
    id, at = field(text, '"id"', at)
  end
  return id
end

local total = redis.pcall('LLEN', KEYS[1])
if type(total) ~= 'number' then
  return { 0, 0, 0, '' }
end
local from, looked, bytes, step = tonumber(ARGV[2]), 0, 0, 1
while bytes < tonumber(ARGV[3]) do
  local right = -1 - from - looked
  local texts = redis.call('LRANGE', KEYS[1], right - step + 1, right)
  if #texts == 0 or from + looked >= total then
    break
  end
  for i = #texts, 1, -1 do
    looked = looked + 1
    bytes = bytes + #texts[i]
    if is_sought(texts[i]) then
      return { from + looked, looked, total, field(texts[i], '"task"', 1) or '' }
    end
  end
  step = math.min(16, 2 * step)  -- a few of them may be large
end
return { 0, looked, total, '' }
