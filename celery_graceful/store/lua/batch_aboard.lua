-- Which members of batches the messages of one part of a list, or of a hash, belong to.
--
-- KEYS[1]  a list of messages, or a hash with messages as its values, in whatever wrapping
-- ARGV     'list' or 'hash'; where to begin: an index, or a cursor; how many at most; how long a list
--          may be: to get to the middle of a longer one takes too long by itself
--
-- Returns where to go on, '' at the end, 'long' of a list that is too long; how many messages, and
-- bytes, it has looked at; and what the headers name: '<batch>/<member>', and
-- '<batch>/callback:<name>' for a callback. A message may be in a string of JSON itself, with its quotes escaped. A body is passed over by `find`, as fast as
-- memory is read: what it says is escaped, or base 64.

-- include json_string

local key, kind, from, count = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
-- A key of another type has none.
local function read(none, ...)
  local answer = redis.pcall(...)
  if type(answer) ~= 'table' or not answer.err then
    return answer
  end
  return string.find(answer.err, 'WRONGTYPE', 1, true) and none or error(answer.err)
end

local texts, further, step
if kind == 'list' then
  if read(0, 'LLEN', key) > tonumber(ARGV[4]) then
    return { 'long', 0, 0 }
  end
  from = tonumber(from)
  texts = read({}, 'LRANGE', key, from, from + count - 1)
  further = #texts < count and '' or tostring(from + count)
  step = 1
else
  local answer = read({ '0', {} }, 'HSCAN', key, from, 'COUNT', count)
  further, texts = answer[1], answer[2]
  further = further == '0' and '' or further
  step = 2
end

local answer, bytes = { further, #texts / step, 0 }, 0
for i = step, #texts, step do
  local text, at = texts[i], 1
  bytes = bytes + #text
  while true do
    local _, last = string.find(text, 'graceful_batch', at, true)
    if not last then
      break
    end
    at = last + 1
    local of, from = string.match(text, '^(_?%a*)\\*"%s*:%s*()\\*"', at)
    local named = from and json_string(text, from) or ''
    if not string.find(named, '^[^/]+/.') then
      of = nil
    end
    if of == '' then
      answer[#answer + 1] = named
    elseif of == '_callback' then
      answer[#answer + 1] = string.gsub(named, '/', '/callback:', 1)
    end
  end
end
answer[3] = bytes
return answer
