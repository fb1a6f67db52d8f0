-- Ring a bell.
--
-- KEYS     the bell
-- ARGV     what with; milliseconds until it expires
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
