-- Claim messages.
--
-- include claiming
--
-- KEYS     as there; ARGV too
return claim(KEYS, ARGV)
