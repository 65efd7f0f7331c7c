-- KEYS: lease
-- ARGV: token, lease ms
local lease = redis.pcall('GET', KEYS[1])
if type(lease) == 'string' and lease:sub(1, 1) == 'L' and lease:sub(3, 18) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
