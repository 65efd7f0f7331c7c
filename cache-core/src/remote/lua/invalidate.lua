-- KEYS: value, lease
-- ARGV: channel, notice
redis.call('UNLINK', KEYS[1])
local lease = redis.pcall('GET', KEYS[2])
-- A write fence is somebody else's: it is never removed or shortened here.
if type(lease) ~= 'string' or lease:sub(1, 1) ~= 'W' then
  redis.call('DEL', KEYS[2])
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
