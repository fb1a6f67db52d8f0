-- Members end, and their messages are acknowledged.
--
-- include batch_ending
--
-- ARGV     key prefix; the ends, see there
--
-- Returns what has become due, and which batches are not cancelled.
return end_members(ARGV[2])
