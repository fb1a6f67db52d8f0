-- A string of JSON as it is meant, whoever wrote it: a letter may stand for itself, or be escaped in
-- one of several ways; and all of it may be in a string of JSON itself, and so on.
--
-- text  JSON
-- at    where the string begins: its quote, with as many backslashes as it takes there
--
-- Returns nil where there is none.
local function json_string(text, at)
  local _, opening, slashes = string.find(text, '^(\\*)"', at)
  if not opening then
    return nil
  end
  -- JSON in a string of JSON makes 2n + 1 backslashes before a quote of n.
  local depth, from, looked = #slashes + 1, opening + 1, opening + 1
  while true do
    local quote = string.find(text, '"', looked, true)
    if not quote then
      return nil
    end
    local before = quote - 1
    while before >= from and string.byte(text, before) == 92 do
      before = before - 1
    end
    if ((quote - before) / depth) % 2 == 1 then
      text = string.sub(text, from, quote - depth)
      break
    end
    looked = quote + 1
  end
  while depth >= 1 and string.find(text, '\\', 1, true) do
    local good, decoded = pcall(cjson.decode, '["' .. text .. '"]')
    if not good then
      return nil
    end
    text, depth = decoded[1], depth / 2
  end
  return text
end
