-- Claim messages, and before that have members end whose messages were claimed earlier.
--
-- include batch_ending
-- include claiming
--
-- KEYS     graceful:batches; graceful:batches:outbox; those of a claim
-- ARGV     key prefix; the ends; what a claim is told
--
-- Returns what a claim does; what the ends do, or why they failed, which keeps nobody from claiming.
local done, answer = pcall(end_members, ARGV[2])
if not done then
  answer = type(answer) == 'table' and answer.err or tostring(answer)
end
return { claim({ unpack(KEYS, 3) }, { unpack(ARGV, 3) }), answer }
