-- KEYS: value, lease
-- ARGV: channel, notice, ms of a write fence, 0 for none
redis.call('UNLINK', KEYS[1])
local lease = redis.pcall('GET', KEYS[2])
-- A write fence may be somebody else's: it is never removed or shortened here.
local fenced = type(lease) == 'string' and lease:sub(1, 1) == 'W'
if not fenced then
  redis.call('DEL', KEYS[2])
end
local left = fenced and redis.call('PTTL', KEYS[2])
-- After the deletions: a script that has deleted may write on a full server, too.
if tonumber(ARGV[3]) > 0 and not (fenced and (left < 0 or left >= tonumber(ARGV[3]))) then
  redis.call('SET', KEYS[2], 'W', 'PX', ARGV[3])
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
