-- See whether something follows from how a batch stands that has been missed.
--
-- include batch_ledger
--
-- ARGV     key prefix; batch
--
-- Returns what has become due, or 'unknown'.
if not exists(ARGV[2]) then
  return 'unknown'
end
look_at(ARGV[2])
return settle_all()
