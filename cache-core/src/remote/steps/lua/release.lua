-- KEYS: lease
-- ARGV: token, channel, notice
local lease = redis.pcall('GET', KEYS[1])
if type(lease) ~= 'string' or lease:sub(1, 1) ~= 'L' or lease:sub(3, 18) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
if lease:sub(2, 2) == '1' then
  redis.call('PUBLISH', ARGV[2], ARGV[3])
end
return 1
