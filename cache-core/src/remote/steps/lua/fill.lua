-- KEYS: value, lease, fence, generations…
-- ARGV: token, TTL ms (0: nothing is stored), ms to keep fence and generations, head, payload, channel, notice
local lease = redis.pcall('GET', KEYS[2])
if type(lease) ~= 'string' or lease:sub(1, 1) ~= 'L' or lease:sub(3, 18) ~= ARGV[1] then
  return 0
end
local ids = redis.call('MGET', unpack(KEYS, 3))
for i = 1, #ids do
  ids[i] = ids[i] or ''
end
local accepted = table.concat(ids) == lease:sub(19)
if accepted and ARGV[2] ~= '0' then
  -- Before anything else is written: a full server refuses a script's first write only.
  redis.call('SET', KEYS[1], ARGV[4] .. table.concat(ids, '', 2) .. ARGV[5], 'PX', ARGV[2])
end
redis.call('DEL', KEYS[2])
if accepted and ARGV[2] ~= '0' then
  local keep = tonumber(ARGV[3])
  for i = 3, #KEYS do
    if redis.call('PTTL', KEYS[i]) < keep then
      redis.call('PEXPIRE', KEYS[i], keep)
    end
  end
end
if lease:sub(2, 2) == '1' then
  redis.call('PUBLISH', ARGV[6], ARGV[7])
end
return accepted and 1 or 0
