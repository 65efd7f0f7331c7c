-- KEYS: value, lease, generations…
-- ARGV: TTL ms, ms to keep generations, head, payload, channel, notice, when it is too late (ms since 1970), new ids…
local now = redis.call('TIME')
if now[1] * 1000 + math.floor(now[2] / 1000) > tonumber(ARGV[7]) then
  return now
end
local lease = redis.pcall('GET', KEYS[2])
if type(lease) == 'string' and lease:sub(1, 1) == 'W' then
  return 0
end
local ids = redis.call('MGET', unpack(KEYS, 3))
local keep = tonumber(ARGV[2])
for i = 1, #KEYS - 2 do
  if not ids[i] or #ids[i] ~= 16 then
    ids[i] = ARGV[7 + i]
    redis.call('SET', KEYS[2 + i], ids[i], 'PX', keep)
  end
end
-- Before anything is removed or extended: a full server refuses a script's first write only.
redis.call('SET', KEYS[1], ARGV[3] .. table.concat(ids) .. ARGV[4], 'PX', ARGV[1])
redis.call('DEL', KEYS[2])
for i = 3, #KEYS do
  if redis.call('PTTL', KEYS[i]) < keep then
    redis.call('PEXPIRE', KEYS[i], keep)
  end
end
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
