-- KEYS: value, lease, fence, generations…
-- ARGV: token, lease ms, first bytes of an entry the caller refused, ms for new fence and generations,
--       token of an earlier attempt, what it is asked for (version, owner, schema), new ids…
local count = #KEYS - 3
local ids = redis.call('MGET', unpack(KEYS, 3))
for i = 1, count + 1 do
  if not ids[i] or #ids[i] ~= 16 then
    ids[i] = ARGV[6 + i]
    redis.call('SET', KEYS[2 + i], ids[i], 'PX', ARGV[4])
  end
end
local generations = table.concat(ids, '', 2)

local head = redis.pcall('GETRANGE', KEYS[1], 0, 87 + 16 * count)
head = type(head) == 'string' and head or ''
local is_valid = #head == 88 + 16 * count and head:sub(1, 4) == 'CCE\2' and head:byte(23) == count
    and head:sub(89) == generations
-- Of a later format: the caller is to leave it alone.
local is_later = #head >= 24 and head:sub(1, 3) == 'CCE' and head:byte(4) > 2 and head:byte(4) == head:byte(24)
local function number(bytes)
  local a, b, c, d = bytes:byte(1, 4)
  return a + 256 * (b + 256 * (c + 256 * d))
end
-- Of a newer version, which names other tags: likewise.
local is_newer = #head >= 88 and head:sub(1, 4) == 'CCE\2' and head:byte(23) ~= count
    and head:sub(33, 44) == ARGV[6]:sub(5, 16) and number(head:sub(25, 28)) > number(ARGV[6])
if (is_valid or is_newer) and head:sub(1, 64) ~= ARGV[3] or is_later then
  return {'value', redis.call('GET', KEYS[1]), generations}
end

local noted = ids[1] .. generations
-- Whether somebody waits: kept when an outdated lease is taken over.
local waits = '0'
local lease = redis.pcall('GET', KEYS[2])
if type(lease) == 'string' then
  local left = redis.call('PTTL', KEYS[2])
  if lease:sub(1, 1) == 'W' then
    return {'fenced', left}
  end
  waits = lease:sub(1, 1) == 'L' and lease:sub(2, 2) or '0'
  -- A lease with our own token, of this attempt or an earlier one: the reply to that got lost.
  local ours = lease:sub(3, 18) == ARGV[1] or lease:sub(3, 18) == ARGV[5]
  if left > 0 and not ours and lease:sub(19) == noted then
    redis.call('SETRANGE', KEYS[2], 1, '1')
    return {'taken', left, lease:sub(3, 18)}
  end
end
-- Before anything else is written: a full server refuses a script's first write only.
redis.call('SET', KEYS[2], 'L' .. waits .. ARGV[1] .. noted, 'PX', ARGV[2])
for i = 3, #KEYS do
  if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[4]) then
    -- It must outlive the fetch, or FILL is refused.
    redis.call('PEXPIRE', KEYS[i], ARGV[4])
  end
end
return {'granted', generations}
