-- Note which worker runs which task, for brokers without claims.
--
-- KEYS     for each: started (the run), deaths (those of its task)
-- ARGV     milliseconds to live; for each: 'worker|delivery' of the run; '1' it starts; '0' it has
--          ended, whichever way: so its worker was alive, and nobody may count it as a death; or
--          '<milliseconds>=<message>' it has ended for good, and its acknowledgement may be lost
for i = 1, #KEYS / 2 do
  local started, deaths, run, what = KEYS[2 * i - 1], KEYS[2 * i], ARGV[2 * i], ARGV[2 * i + 1]
  if what == '1' then
    redis.call('SET', started, run, 'PX', ARGV[1])
  else
    local now, ttl, message = redis.call('GET', started), string.match(what, '^(%d+)(=.*)$')
    if message and (not now or now == run) then
      redis.call('SET', started, message, 'PX', ttl)
    elseif now == run then
      redis.call('DEL', started)
    end
    redis.call('ZREM', deaths, run)
  end
end
