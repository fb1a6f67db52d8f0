-- The queue that a list belongs to, both without the key prefix: kombu has a list for each of its
-- priorities, `<queue><separator><priority>`. As `queue_lists.queue_of` does.
local function queue_of(list, separator)
  local at = string.find(string.reverse(list), string.reverse(separator), 1, true)
  if at and string.match(list, '^%d+$', #list - at + 2) then
    return string.sub(list, 1, #list - at + 1 - #separator)
  end
  return list
end
