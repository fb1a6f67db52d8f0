-- Read claims of a worker, mostly without the bodies of their messages.
--
-- KEYS     the claims; graceful:epoch
-- ARGV     bytes after which it stops; 'cut' to leave bodies out, or 'whole'; numbers of the claims
--
-- A body may be large, and who gives a claim back does not look into it. It can be left out where it
-- comes first and needs no escapes, as kombu writes it. Returns two for each claim: its entry, or
-- false; 1 if its body was cut. For those that it got to: the first one at least. Then the epoch in
-- which that is so.
local found, bytes = {}, 0
for i = 3, #ARGV do
  local entry, cut = redis.call('HGET', KEYS[1], ARGV[i]), 0
  if entry then
    bytes = bytes + #entry
    if ARGV[2] == 'cut' then
      local at = string.find(entry, '\0', 1, true)
      if at and string.sub(entry, at + 1, at + 10) == '{"body": "' then
        local quote = string.find(entry, '"', at + 11, true)
        local escape = string.find(entry, '\\', at + 11, true)
        if quote and not (escape and escape < quote) then
          entry, cut = string.sub(entry, 1, at + 10) .. string.sub(entry, quote), 1
        end
      end
    end
  end
  found[#found + 1] = entry
  found[#found + 1] = cut
  if bytes >= tonumber(ARGV[1]) then
    break
  end
end
found[#found + 1] = redis.call('HGET', KEYS[2], 'id') or ''
return found
