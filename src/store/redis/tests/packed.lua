#!lua name=packed
-- The layout that came before Redis lists, kept to measure against: a list is one string, a 2-byte count, then the
-- entries, newest first by (ts, event id). An entry is `length | ts | id length | id | body | length`; lengths have 2 bytes, ts has 6
-- (ms + 2^47), all big-endian. The second length lets the oldest entry be dropped without a walk.

local EPOCH = 140737488355328

local function two_bytes(text, at)
  local high, low = string.byte(text, at, at + 1)
  return high * 256 + low
end

local function ts_at(text, at)
  local a, b, c, d, e, f = string.byte(text, at, at + 5)
  return ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f - EPOCH
end

-- Byte by byte: Lua's own comparison depends on the server's locale.
local function id_above(left, right)
  for at = 1, math.min(#left, #right) do
    local l, r = string.byte(left, at), string.byte(right, at)
    if l ~= r then return l > r end
  end
  return #left > #right
end

-- ---- kept lists

-- Whether `at` is where an entry's id length stands, and not some byte of a body that looks like one.
local function is_id_place(list, at)
  local start = 3
  while start + 8 < at do start = start + two_bytes(list, start) + 4 end
  return start + 8 == at
end

local function keeps(list, id)
  local needle = string.char(#id) .. id
  local at = string.find(list, needle, 3, true)
  while at do
    if is_id_place(list, at) then return true end
    at = string.find(list, needle, at + 1, true)
  end
  return false
end

-- The list with the entry in its place, or nil when `cap` entries sort above it.
local function insert(list, ts, id, packed, cap)
  local count = list == '' and 0 or two_bytes(list, 1)
  local at, above = 3, 0
  while above < count do
    local entry_ts = ts_at(list, at + 2)
    if entry_ts < ts then break end
    if entry_ts == ts then
      local id_length = string.byte(list, at + 8)
      if not id_above(string.sub(list, at + 9, at + 8 + id_length), id) then break end
    end
    at = at + two_bytes(list, at) + 4
    above = above + 1
  end
  if above >= cap then return nil end
  local last = #list
  if count == cap then
    last = last - two_bytes(list, #list - 1) - 4
    count = count - 1
  end
  count = count + 1
  local length = string.char(math.floor(#packed / 256), #packed % 256)
  local head = string.char(math.floor(count / 256), count % 256)
  return head .. string.sub(list, 3, at - 1) .. length .. packed .. length .. string.sub(list, at, last)
end

-- KEYS: st, engagements, impressions, queries. ARGV of each record: list (1 engagements, 2 impressions), then
-- `ts | id length | id | body`.
redis.register_function('packed_append', function(keys, args)
  local st, lists, changed, added = redis.call('HMGET', keys[1], 'seq', 'weight'), {}, {}, 0
  for nth = 1, 3 do lists[nth] = redis.call('GET', keys[nth + 1]) or '' end
  for at = 1, #args, 2 do
    local nth, packed = tonumber(args[at]), args[at + 1]
    local ts, id = ts_at(packed, 1), string.sub(packed, 8, 7 + string.byte(packed, 7))
    if not (keeps(lists[1], id) or keeps(lists[2], id) or keeps(lists[3], id)) then
      local grown = insert(lists[nth], ts, id, packed, 100)
      if grown then lists[nth], changed[nth], added = grown, true, added + 1 end
    end
  end
  redis.call('HSET', keys[1], 'seq', tonumber(st[1] or '0') + added, 'weight', tonumber(st[2] or '0') + added)
  for nth = 1, 3 do
    if changed[nth] then redis.call('SET', keys[nth + 1], lists[nth]) end
  end
  return added
end)
