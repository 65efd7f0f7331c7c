-- KEYS: value, generations…
-- ARGV: stamp, TTL ms, ms to keep generations, what it is touched for (version, owner, schema)
local count = #KEYS - 1
local ids = redis.call('MGET', unpack(KEYS, 2))
local head = redis.pcall('GETRANGE', KEYS[1], 0, 87 + 16 * count)
if type(head) ~= 'string' or #head ~= 88 + 16 * count or head:sub(1, 4) ~= 'CCE\2' or head:byte(23) ~= count then
  return 0
end
if head:sub(25, 28) .. head:sub(33, 52) ~= ARGV[4] then
  return 0
end
for i = 1, count do
  if not ids[i] or ids[i] ~= head:sub(73 + 16 * i, 88 + 16 * i) then
    return 0
  end
end
redis.call('SETRANGE', KEYS[1], 64, ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local keep = tonumber(ARGV[3])
for i = 2, #KEYS do
  if redis.call('PTTL', KEYS[i]) < keep then
    redis.call('PEXPIRE', KEYS[i], keep)
  end
end
return 1
