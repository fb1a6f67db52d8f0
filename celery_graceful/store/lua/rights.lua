-- Try what a worker has to be allowed.
--
-- KEYS     a key of its own; without commands: those that it wants to use
-- ARGV     for each command: its name, how many arguments follow, and they; KEY stands for KEYS[1]
--
-- Nothing is done: KEYS[1] holds a string, for a second, and the commands want something else.
-- Returns the names of the commands that are refused for another reason than that. What the server
-- refuses to everybody is no matter of rights: that is the answer then.
local EVERYBODY = { OOM = true, READONLY = true, MISCONF = true, NOREPLICAS = true, MASTERDOWN = true }
local refused, fault = {}, nil
local function try(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err and not string.find(answer.err, 'WRONGTYPE', 1, true) then
    if EVERYBODY[string.match(answer.err, '^%-?(%u+)')] then
      fault = answer
    end
    refused[#refused + 1] = (...)
    return false
  end
  return true
end
if #ARGV == 0 or not try('SET', KEYS[1], '', 'PX', 1000) then
  return fault or refused
end
local i = 1
while i <= #ARGV do
  local command = { ARGV[i] }
  for j = i + 2, i + 1 + ARGV[i + 1] do
    command[#command + 1] = ARGV[j] == 'KEY' and KEYS[1] or ARGV[j]
  end
  try(unpack(command))
  i = i + 2 + ARGV[i + 1]
end
return fault or refused
