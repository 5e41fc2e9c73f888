#!lua name=@LIBRARY@
-- taiji's functions inside Redis: a template, loaded and called by src/store/redis. The name that is put in (functions.rs)
-- carries a hash of this text, and every function's name begins with it: Redis refuses two libraries that define one
-- function, and so two builds share a server without touching each other.
--
-- Every function touches the keys of one slot and reads everything before it writes anything, so a wrong type found on the
-- way leaves nothing half done. (Lua's libraries are there in calls only, not while this file is loaded.) ARGV[1] is the
-- time in unix ms, empty in production (Redis' own clock); tests move it.
--
-- A kept list (engagements, impressions, queries) is a Redis list, newest first by (ts, event id), two elements an entry: the
-- event id, then `ts | body`. ts has 6 bytes, big-endian: ms + EPOCH, so that the first byte is one of 0x80 to 0xBF. No UTF-8
-- text begins with one, so LPOS, which searches in C, finds an id among ids only.
--
-- A list may hold more than was put into it. A Redis (7.0) whose append-only file ends within a transaction leaves the half of it in
-- the file, without effect; at the next start but one the half counts as if it had been whole. What was lost was sent again by
-- then, so an entry may stand there twice, or its id once more without a body. Whoever walks a list passes over that,
-- whoever reads one takes it out (`entries.rs`).
--
-- What is not ours, or cut, ends the call with WRONGTYPE where it is one user's, and is passed over where it is one of many:
-- removed, and kept for a while in `ns:unreadable:{tag}` (member → when) with `:v` (member → where it was, and the bytes).

local LIBRARY = '@LIBRARY@'
local EPOCH = 175921860444160
local HISTORY_CAP, QUERY_CAP, PROFILE_CAP, ITEM_USERS_CAP = 100, 20, 64, 5
local REMEMBERED_CAP, CLOCK_STEP_MS = 220, 60000
-- Nothing that lies further ahead was ever accepted.
local AHEAD_MS = 86400000 + CLOCK_STEP_MS
local OPT_OUT = 'cross_opt_out'
local CLASSES = 4
-- Empty but in rehearsals of an upgrade: a field, and its value, that are added to a user's counters.
local UNKNOWN = { @UNKNOWN@ }

local function now_ms(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function integer(number) return string.format('%.0f', number) end

local function unreadable(what) error(redis.error_reply('WRONGTYPE ' .. what)) end

-- A stored number, absent = 0.
local function counter(text, key)
  local number = tonumber(text or '0')
  if not number or number ~= number or math.abs(number) == math.huge then unreadable('no number in ' .. key) end
  return number
end

-- ---- what cannot be read of keys of many

-- Whether these bytes can be an id: UTF-8 (nearly), not too long, no control characters.
local function is_id(text)
  return #text > 0 and #text <= 128 and not string.find(text, '[%z\1-\31\127]')
    and string.gsub(text, '[%z\1-\127\194-\244][\128-\191]*', '') == ''
end

local ASIDE_CAP, ASIDE_MEMBER, ASIDE_BYTES = 1000, 256, 1024
local put_aside = 0

-- Keeps the newest few. Nothing that goes wrong here may harm the caller.
local function keep_aside(keys, now, member, source, value)
  put_aside = put_aside + 1
  member = string.sub(member, 1, ASIDE_MEMBER)
  redis.pcall('ZADD', keys[1], integer(now), member)
  redis.pcall('HSET', keys[2], member, source .. '\n' .. string.sub(value, 1, ASIDE_BYTES))
  local known = redis.pcall('ZCARD', keys[1])
  if type(known) ~= 'number' or known <= ASIDE_CAP then return end
  for _, old in ipairs(redis.pcall('ZRANGE', keys[1], 0, known - ASIDE_CAP - 1)) do
    redis.pcall('ZREM', keys[1], old)
    redis.pcall('HDEL', keys[2], old)
  end
end

-- KEYS: of a feed (members by id, values) the two, of a hash or a set the one twice; then the two of what is put aside. ARGV: time,
-- kind (f, h, s), member, the value that was read. Returns 1 if it was still that.
local function set_aside(keys, args)
  local kind, member, value = args[2], args[3], args[4]
  if kind == 'f' or kind == 'h' then
    if (redis.call('HGET', keys[2], member) or '') ~= value then return 0 end
    redis.call('HDEL', keys[2], member)
  end
  if kind == 'f' then redis.call('ZREM', keys[1], member) end
  if kind == 's' then redis.call('SREM', keys[1], member) end
  keep_aside({ keys[3], keys[4] }, now_ms(args[1]), member, keys[1], value)
  return 1
end

-- KEYS: of what is put aside. ARGV: time, member. An erased user's bytes go, too.
local function clear_aside(keys, args)
  redis.pcall('ZREM', keys[1], args[2])
  redis.pcall('HDEL', keys[2], args[2])
  return 1
end

-- KEYS: of what is put aside. ARGV: time, before which it is forgotten. A step is ASIDE_CAP at most.
local function expire_aside(keys, args)
  local old = redis.call('ZRANGEBYSCORE', keys[1], '-inf', '(' .. args[2], 'LIMIT', 0, ASIDE_CAP)
  for _, member in ipairs(old) do
    redis.call('ZREM', keys[1], member)
    redis.call('HDEL', keys[2], member)
  end
  return #old
end

local function ts_at(text, at)
  local a, b, c, d, e, f = string.byte(text, at, at + 5)
  return ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f - EPOCH
end

-- By bytes: Lua's own order depends on the server's locale. Equal parts are told by comparing halves, because comparing byte after
-- byte is ten times as slow for long ids that begin alike.
local function id_above(left, right)
  local same, differ = 0, math.min(#left, #right)
  if string.sub(left, 1, differ) == string.sub(right, 1, differ) then return #left > #right end
  while differ - same > 1 do
    local middle = math.floor((same + differ) / 2)
    if string.sub(left, same + 1, middle) == string.sub(right, same + 1, middle) then same = middle else differ = middle end
  end
  return string.byte(left, differ) > string.byte(right, differ)
end

local function stamp_above(ts, id, other_ts, other_id)
  if ts ~= other_ts then return ts > other_ts end
  return id_above(id, other_id)
end

-- ---- kept lists. A list is { key, cap }; once it is loaded also the entries, oldest first from `first` on, and their ids.

local WALK = 32
-- A call with more records than this loads the lists once and writes them once.
local FEW = 8

local function is_body(element)
  local first = string.byte(element, 1)
  return first ~= nil and first >= 0x80 and first <= 0xBF
end

local function entry_above(one, other) return stamp_above(one.ts, one.id, other.ts, other.id) end

local function load(list)
  local newest_first, ids, sorted, id = {}, {}, true, nil
  for _, element in ipairs(redis.call('LRANGE', list.key, 0, -1)) do
    if not is_body(element) then
      id = element
    elseif id and #element >= 6 and not ids[id] then
      local entry = { ts = ts_at(element, 1), id = id, stored = element }
      local newer = newest_first[#newest_first]
      sorted = sorted and (not newer or entry_above(newer, entry))
      newest_first[#newest_first + 1], ids[id], id = entry, true, nil
    end
  end
  if id and #newest_first == 0 then unreadable('no kept list at ' .. list.key) end
  if not sorted then table.sort(newest_first, entry_above) end
  local entries = {}
  for at = #newest_first, 1, -1 do entries[#entries + 1] = newest_first[at] end
  list.entries, list.ids, list.first, list.loaded = entries, ids, 1, #entries
end

-- Whether an entry of that id is kept. An id that lost its body is none: its event is to come again.
local function keeps(lists, id)
  for _, list in ipairs(lists) do
    if list.entries then
      if list.ids[id] then return true end
    else
      for _, place in ipairs(redis.call('LPOS', list.key, id, 'COUNT', 0)) do
        local body = redis.call('LINDEX', list.key, place + 1)
        if body and is_body(body) then return true end
      end
    end
  end
  return false
end

-- The body of a list's first entry, or nil. Before it may stand ids without a body.
local function first_body(list)
  local second = redis.call('LINDEX', list, 1)
  if not second then
    if redis.call('LLEN', list) > 0 then unreadable('no kept list at ' .. list) end
    return nil
  end
  if is_body(second) and #second >= 6 then return second end
  for _, element in ipairs(redis.call('LRANGE', list, 2, WALK)) do
    if is_body(element) and #element >= 6 then return element end
  end
  unreadable('no kept list at ' .. list)
end

-- The first kept entry's id that sorts below (ts, id), or nil; and how many sort above. By halves; nil, nil where an id without
-- a body is met on the way.
local function place_by_halves(list, ts, id)
  local length = redis.call('LLEN', list)
  local above, below, kept_below = 0, math.floor(length / 2), nil
  if length % 2 ~= 0 then return nil, nil end
  while above < below do
    local middle = math.floor((above + below) / 2)
    local kept, stored = redis.call('LINDEX', list, 2 * middle), redis.call('LINDEX', list, 2 * middle + 1)
    if is_body(kept) or not is_body(stored) or #stored < 6 then return nil, nil end
    if stamp_above(ts, id, ts_at(stored, 1), kept) then below, kept_below = middle, kept else above = middle + 1 end
  end
  return kept_below, above
end

-- The same, entry by entry.
local function place_in_order(list, ts, id)
  local above, from, kept = 0, 0, nil
  while true do
    local part = redis.call('LRANGE', list, from, from + WALK - 1)
    for _, element in ipairs(part) do
      if not is_body(element) then
        kept = element
      elseif kept then
        if stamp_above(ts, id, ts_at(element, 1), kept) then return kept, above end
        above, kept = above + 1, nil
      end
    end
    if #part < WALK then return nil, above end
    from = from + #part
  end
end

local function place_in(list, ts, id)
  local kept, above = place_by_halves(list, ts, id)
  if above then return kept, above end
  return place_in_order(list, ts, id)
end

-- As `insert`, of a list that was loaded.
local function insert_loaded(list, ts, id, stored)
  local entries, below, above = list.entries, list.first - 1, #list.entries + 1
  while above - below > 1 do
    local middle = math.floor((below + above) / 2)
    local entry = entries[middle]
    if stamp_above(ts, id, entry.ts, entry.id) then below = middle else above = middle end
  end
  if #entries + 1 - above >= list.cap then return false end
  table.insert(entries, above, { ts = ts, id = id, stored = stored })
  list.ids[id] = true
  list.inserted_from = math.min(list.inserted_from or above, above)
  if #entries - list.first >= list.cap then
    list.ids[entries[list.first].id] = nil
    list.first = list.first + 1
  end
  return true
end

-- Puts an entry in its place; false when `cap` entries sort above it. Most are newer than everything kept.
local function insert(list, ts, id, stored)
  if list.entries then return insert_loaded(list, ts, id, stored) end
  local newest, length = first_body(list.key), nil
  if not newest or ts > ts_at(newest, 1) then
    length = redis.call('LPUSH', list.key, stored, id)
  else
    local below, above = place_in(list.key, ts, id)
    if above >= list.cap then return false end
    if below then
      redis.call('LINSERT', list.key, 'BEFORE', below, id)
      length = redis.call('LINSERT', list.key, 'BEFORE', below, stored)
    else
      length = redis.call('RPUSH', list.key, id, stored)
    end
  end
  if length > 2 * list.cap then redis.call('RPOP', list.key, 2) end
  return true
end

-- Writes what `insert_loaded` did.
local function save(list)
  if not list.inserted_from then return end
  local entries, from, elements = list.entries, list.inserted_from, {}
  -- What was put in between loaded entries takes all of them to be written again.
  if from <= list.loaded then
    from = list.first
    redis.call('DEL', list.key)
  end
  for at = math.max(from, list.first), #entries do
    elements[#elements + 1], elements[#elements + 2] = entries[at].stored, entries[at].id
  end
  redis.call('LPUSH', list.key, unpack(elements))
  redis.call('LTRIM', list.key, 0, 2 * list.cap - 1)
end

-- ---- profile. An attribute is stored as `ts | id length | id | value`; all before the value is its event's head. Attributes
-- of one event stand in one bucket, and the buckets, once there is something to evict, in the order of (ts, id).

local function bucket_of(profile, head, ts, id)
  local bucket = profile.by_head[head]
  if bucket then return bucket end
  bucket = { head = head, ts = ts, id = id, names = {}, next = 1 }
  profile.by_head[head] = bucket
  local order = profile.order
  if order then
    local below, above = 0, #order + 1
    while above - below > 1 do
      local middle = math.floor((below + above) / 2)
      if stamp_above(ts, id, order[middle].ts, order[middle].id) then below = middle else above = middle end
    end
    table.insert(order, above, bucket)
  end
  return bucket
end

local function profile_of(key)
  local profile = { size = 0, buckets = {}, by_head = {}, stored = {}, changed = {} }
  local flat = redis.call('HGETALL', key)
  for at = 1, #flat, 2 do
    local name, value = flat[at], flat[at + 1]
    if #value < 7 or not is_body(value) or #value < 7 + string.byte(value, 7) then unreadable('no profile at ' .. key) end
    local length = string.byte(value, 7)
    local bucket = bucket_of(profile, string.sub(value, 1, 7 + length), ts_at(value, 1), string.sub(value, 8, 7 + length))
    bucket.names[#bucket.names + 1], bucket.unsorted = name, true
    profile.buckets[name], profile.stored[name] = bucket, true
    profile.size = profile.size + 1
  end
  return profile
end

local function order_of(profile)
  if not profile.order then
    profile.order = {}
    for _, bucket in pairs(profile.by_head) do profile.order[#profile.order + 1] = bucket end
    table.sort(profile.order, function(one, other) return entry_above(other, one) end)
  end
  return profile.order
end

-- Drops the attribute that is the oldest by (ts, id, name); false when none is older than (ts, id).
local function evict_older_than(profile, ts, id)
  local order = order_of(profile)
  local oldest = order[1]
  while oldest and stamp_above(ts, id, oldest.ts, oldest.id) do
    if oldest.unsorted then
      table.sort(oldest.names, function(one, other) return id_above(other, one) end)
      oldest.unsorted = nil
    end
    while oldest.next <= #oldest.names do
      local name = oldest.names[oldest.next]
      oldest.next = oldest.next + 1
      if name ~= OPT_OUT and profile.buckets[name] == oldest then
        profile.buckets[name], profile.changed[name] = nil, nil
        profile.size = profile.size - 1
        return true
      end
    end
    -- (The opt-out, which stays, may be all that is left in it.)
    table.remove(order, 1)
    profile.by_head[oldest.head] = nil
    oldest = order[1]
  end
  return false
end

-- `former`: the id under which an older build kept the same event, or nil.
local function merge(profile, ts, id, former, head, args, first, pairs_count)
  local bucket, newer = nil, false
  for nth = 0, pairs_count - 1 do
    local name = args[first + nth * 2]
    local held = profile.buckets[name]
    local takes = held == nil or stamp_above(ts, id, held.ts, held.id) and not (held.ts == ts and held.id == former)
    if takes and held == nil and profile.size >= PROFILE_CAP then takes = evict_older_than(profile, ts, id) end
    if takes then
      if held == nil then profile.size = profile.size + 1 end
      if not bucket then
        bucket = bucket_of(profile, head, ts, id)
        bucket.unsorted = bucket.unsorted or #bucket.names > 0
      end
      local last = bucket.names[#bucket.names]
      if last and not id_above(name, last) then bucket.unsorted = true end
      bucket.names[#bucket.names + 1] = name
      profile.buckets[name], profile.changed[name] = bucket, args[first + nth * 2 + 1]
      newer = true
    end
  end
  return newer
end

local function write_profile(key, profile)
  local gone, fields = {}, {}
  for name in pairs(profile.stored) do
    if not profile.buckets[name] then gone[#gone + 1] = name end
  end
  for name, value in pairs(profile.changed) do
    fields[#fields + 1], fields[#fields + 2] = name, profile.buckets[name].head .. value
  end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  if #fields > 0 then redis.call('HSET', key, unpack(fields)) end
end

-- ---- append

local CAPS = { HISTORY_CAP, HISTORY_CAP, QUERY_CAP }
local LIST_OF = { e = 1, i = 2, q = 3 }

-- Whether the event of that id was erased before its time, and the time has not come yet.
local function is_remembered(key, id, now)
  -- Something else at that key remembers nothing.
  local ts = redis.pcall('ZSCORE', key, id)
  return type(ts) == 'string' and tonumber(ts) > now
end

-- Bulk history holds a user back from the sweep who was not behind before: `held` is the `seq` before the first of it and the one up to
-- which nothing else came since. A space whose features have not even seen the former is behind by more than bulk history. Every
-- other event takes the mark back, as it does, unknowingly, in an older build: it raises `seq`.
local function hold_back(key, is_bulk, before, seq, st, refreshed)
  local done = math.max(tonumber(string.match(refreshed, '^%d+') or '0'), tonumber(st[6] or '0') or 0)
  local from, to = string.match(st[7] or '', '^(%d+) (%d+)$')
  if not to or tonumber(to) ~= before then from = integer(before) end
  if is_bulk and done >= tonumber(from) then
    redis.call('HSET', key, 'held', from .. ' ' .. integer(seq))
  elseif st[7] then
    redis.call('HDEL', key, 'held')
  end
end

-- Of the versions refreshed in several spaces (fields of the counters from `first` on) the one of the lowest `seq`; empty where one
-- space has none. What is no version is told at once.
local function least_refreshed(st, first)
  local least, least_seq
  for at = first, #st do
    if not st[at] or st[at] == '' then return '' end
    local seq = tonumber(string.match(st[at], '^%d+'))
    if not seq then return st[at] end
    if not least_seq or seq < least_seq then least, least_seq = st[at], seq end
  end
  return least or ''
end

-- KEYS: st, engagements, impressions, queries, profile, remembered.
-- ARGV: time, number of spaces, the spaces, 1 for bulk history or 0, the kind of each record (e, i, q, p; n enters nothing), then of each
-- record: weight, event id, `ts | body`; after that, where the kind is a capital, the id under which it may be kept as well; and of p the
-- number of attributes, then name and value of each.
-- Returns a flag of each record (a accepted, k kept already, o too old), whether the user is new, the state, the least refreshed.
--
-- Every list was asked for the first id before the first entry is written, and the profile before all: a key of
-- another type ends the call while nothing is changed.
--
-- What a call costs is estimated by the caller (`pace.rs`), which cuts a user's records into several calls.
local function append(keys, args)
  local fields, first = {}, 4 + tonumber(args[2])
  for nth = 3, first - 2 do fields[#fields + 1] = 'r:' .. args[nth] end
  local st = redis.call('HMGET', keys[1], 'seq', 'weight', 'last_refresh_ms', 'era', 'erased_before_ms',
    'erased_seq', 'held', 'remembered_until', unpack(fields))
  local seq, weight, erased = counter(st[1], keys[1]), counter(st[2], keys[1]), counter(st[5], keys[1])
  local refreshed = least_refreshed(st, 9)
  local before, now = seq, st[8] and now_ms(args[1])
  local remembers = now and (tonumber(st[8]) or 0) > now
  local kinds, lists, flags, at = args[first], {}, {}, first + 1
  for nth, cap in ipairs(CAPS) do
    lists[nth] = { key = keys[nth + 1], cap = cap }
    if #kinds > FEW then load(lists[nth]) end
  end
  local profile = string.find(string.lower(kinds), 'p', 1, true) and profile_of(keys[5])
  for nth = 1, #kinds do
    local kind, gain, id, stored, former = string.sub(kinds, nth, nth), args[at], args[at + 1], args[at + 2], nil
    at = at + 3
    if string.byte(kind) < 97 then
      kind, former, at = string.lower(kind), args[at], at + 1
    end
    local ts, list, flag = ts_at(stored, 1), LIST_OF[kind], 'o'
    if erased ~= 0 and ts <= erased then
      flag = 'o'
    elseif remembers and (is_remembered(keys[6], id, now) or former and is_remembered(keys[6], former, now)) then
      flag = 'o'
    elseif keeps(lists, id) or former and keeps(lists, former) then
      flag = 'k'
    elseif kind == 'p' then
      local head = string.sub(stored, 1, 6) .. string.char(#id) .. id
      if merge(profile, ts, id, former, head, args, at + 1, tonumber(args[at])) then flag = 'a' end
    elseif list and insert(lists[list], ts, id, stored) then
      flag = 'a'
    end
    if flag == 'a' then
      seq, weight = seq + 1, weight + tonumber(gain)
    end
    flags[nth] = flag
    if kind == 'p' then at = at + 1 + 2 * tonumber(args[at]) end
  end
  local flags_text = table.concat(flags)
  local weight_text, is_new = string.format('%.17g', weight), 0
  if string.find(flags_text, 'a', 1, true) then
    if not st[1] then is_new = 1 end
    redis.call('HSET', keys[1], 'seq', integer(seq), 'weight', weight_text, unpack(UNKNOWN))
    hold_back(keys[1], args[first - 1] == '1', before, seq, st, refreshed)
    if profile then write_profile(keys[5], profile) end
    for _, list in ipairs(lists) do save(list) end
  end
  return { flags_text, is_new, integer(seq), weight_text, st[3] or '0', st[4] or '0', st[5] or '0', st[6] or '0',
    refreshed }
end

-- ---- features

-- KEYS: st, features. ARGV: time, space, era, seq, turn, revision read, note the refresh (1 or 0), expiry in ms or empty, then
-- fields and values. The caller decided by the version rules on what it had read; this writes only if that still stands.
local function put(keys, args)
  local st = redis.call('HMGET', keys[1], 'seq', 'era')
  local current, revision = counter(st[1], keys[1]), redis.call('HGET', keys[2], 'rev') or '0'
  if (st[2] or '0') ~= args[3] then return { 'era', 0, 0 } end
  if tonumber(args[4]) > current then return { 'future', 0, 0 } end
  if revision ~= args[6] then return { 'changed', 0, 0 } end
  redis.call('HSET', keys[2], 'rev', integer(counter(revision, keys[2]) + 1), unpack(args, 9))
  if args[8] ~= '' then redis.call('PEXPIREAT', keys[2], args[8]) else redis.call('PERSIST', keys[2]) end
  local is_new = redis.call('HSETNX', keys[1], 'seq', '0')
  if args[7] == '1' then
    redis.call('HSET', keys[1], 'last_refresh_ms', integer(now_ms(args[1])), 'r:' .. args[2], args[4] .. ' ' .. args[5])
    if tonumber(args[4]) == current then redis.call('HSET', keys[1], 'weight', '0') end
  else
    -- No refresh, but an erasure must find the space.
    redis.call('HSETNX', keys[1], 'r:' .. args[2], '')
  end
  return { 'written', integer(current), is_new }
end

-- KEYS: features. ARGV: time, revision read, then fields and values. For changes that are no put; the expiry stays.
local function rewrite(keys, args)
  local revision = redis.call('HGET', keys[1], 'rev') or '0'
  if revision ~= args[2] then return 0 end
  redis.call('HSET', keys[1], 'rev', integer(counter(revision, keys[1]) + 1), unpack(args, 3))
  return 1
end

-- ---- erasure

-- What the counters of `erase` look like; the weight is any number.
local COUNTERS = { '^%d+$', '^[%d.e+-]+$', '^%-?%d+$', '^%d+$', '^%-?%d+$', '^%d+$', '^%d+$' }

-- The counters; nil where they cannot be read, whatever stands there.
local function readable_state(key)
  local st = redis.pcall('HMGET', key, 'seq', 'weight', 'last_refresh_ms', 'era', 'erased_before_ms', 'erased_seq', 'erasure')
  if st.err then return nil end
  for nth = 1, 7 do
    local text = st[nth]
    if text and (#text > 24 or not string.match(text, COUNTERS[nth]) or not tonumber(text)) then return nil end
  end
  return st
end

-- Ids and times of what is kept, can be read and lies after a time, the latest first; and the newest time up to that one, 0 = none.
local function kept_after(keys, now)
  local found, ids, newest = {}, {}, 0
  local function note(ts, id)
    if ts <= now then
      newest = math.max(newest, ts)
    elseif ts <= now + AHEAD_MS and not ids[id] then
      ids[id] = true
      found[#found + 1] = { ts, id }
    end
  end
  for nth = 2, 4 do
    local id
    local elements = redis.pcall('LRANGE', keys[nth], 0, -1)
    for _, element in ipairs(elements.err and {} or elements) do
      if not is_body(element) then
        id = element
      elseif id and #element >= 6 then
        local ts = ts_at(element, 1)
        note(ts, id)
        if ts <= now then break end
        id = nil
      end
    end
  end
  local values = redis.pcall('HVALS', keys[5])
  for _, value in ipairs(values.err and {} or values) do
    if #value >= 7 and is_body(value) then note(ts_at(value, 1), string.sub(value, 8, 7 + string.byte(value, 7))) end
  end
  table.sort(found, function(left, right) return left[1] > right[1] end)
  return found, newest
end

-- Remembers erased events that lie ahead of the clock, so that each is a duplicate until its time has come.
local function remember(key, now, events)
  if redis.call('TYPE', key).ok ~= 'zset' then redis.call('UNLINK', key) end
  redis.call('ZREMRANGEBYSCORE', key, '-inf', integer(now))
  for nth = 1, math.min(#events, REMEMBERED_CAP) do redis.call('ZADD', key, integer(events[nth][1]), events[nth][2]) end
  redis.call('ZREMRANGEBYRANK', key, 0, -REMEMBERED_CAP - 1)
  local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
  if not last[1] then return nil end
  redis.call('PEXPIRE', key, integer(tonumber(last[2]) - now + 86400000))
  return integer(tonumber(last[2]))
end

-- KEYS: st, engagements, impressions, queries, profile, remembered, then the features and the referrers of every space. ARGV:
-- time, id of the erasure, the `seq` it must find or nothing, the spaces. Returns whether a space is missing (2: another `seq` was
-- found, or nothing that could go), whether the user is new, and the counters; an id not above the last changes nothing. The keys go
-- whatever they hold, but
-- referrers only where they are no set: the job needs them. Where the counters cannot be read a new era begins, the time, which is
-- above every one counted, and `seq` with it.
local function erase(keys, args)
  local st = readable_state(keys[1])
  local is_lost, now = st == nil, now_ms(args[1])
  st = st or { false, false, false, false, false, false, false }
  local function state(changed)
    return { changed, st[1] and 0 or 1, st[1] or '0', st[2] or '0', st[3] or '0', st[4] or '0', st[5] or '0', st[6] or '0' }
  end
  if not is_lost and tonumber(args[2]) <= tonumber(st[7] or '0') then return state(0) end
  local is_idle = args[3] ~= ''
  if is_idle and (args[3] ~= (st[1] or '0') or args[3] == (st[6] or '0')) then return state(2) end
  local given, refreshed = {}, {}
  for at = 4, #args do given['r:' .. args[at]] = true end
  local fields = redis.pcall('HKEYS', keys[1])
  for _, field in ipairs(fields.err and {} or fields) do
    if string.sub(field, 1, 2) == 'r:' then
      if not given[field] then return { 1, 0, '0', '0', '0', '0', '0', '0' } end
      refreshed[#refreshed + 1] = field
    end
  end
  local before = tonumber(st[5] or '0')
  local ahead, newest = kept_after(keys, now)
  -- A clock may go back a little, at a fail-over. What lies further ahead is an older build's, which took the newest event's time.
  -- Nobody asked to erase an idle user's events that are on their way.
  if before > now + CLOCK_STEP_MS then
    before = now
  else
    before = math.max(before, is_idle and newest or now)
  end
  local was_new, seq = not is_lost and not st[1], st[1] or '0'
  local era = is_lost and now or tonumber(st[4] or '0') + 1
  st[1], st[2], st[3], st[4], st[5], st[6] = seq, '0', '0', integer(era), integer(before), seq
  local spaces = #args - 3
  redis.call('UNLINK', keys[2], keys[3], keys[4], keys[5], unpack(keys, 7, 6 + spaces))
  for nth = 7 + spaces, #keys do
    local kind = redis.call('TYPE', keys[nth]).ok
    if kind ~= 'set' then redis.call('UNLINK', keys[nth]) end
  end
  if is_lost then redis.call('UNLINK', keys[1]) end
  local until_ms = remember(keys[6], now, ahead)
  for _, field in ipairs(refreshed) do redis.call('HDEL', keys[1], field) end
  redis.call('HSET', keys[1], 'seq', seq, 'weight', '0', 'last_refresh_ms', '0', 'era', st[4], 'erased_before_ms', st[5],
    'erased_seq', seq, 'erasure', args[2])
  if until_ms then redis.call('HSET', keys[1], 'remembered_until', until_ms) else redis.call('HDEL', keys[1], 'remembered_until') end
  local answer = state(0)
  answer[2] = was_new and 1 or 0
  return answer
end

-- KEYS of erasures: user → `id era` (era empty while unfinished), last id; then users of unfinished ones by id, and of finished
-- ones. The two sorted sets only find what stands in the hash: an older build knows nothing of them, so they may lack users or
-- hold too many, and whoever meets one who stands wrong puts them right.

-- Puts a user where the hash says; returns the id and the era (nil while unfinished), or nothing where none is noted.
local function file_erasure(keys, user)
  local noted = redis.call('HGET', keys[1], user)
  local id, era = string.match(noted or '', '^(%d+) (%d*)$')
  local right, wrong = keys[3], keys[4]
  if era and era ~= '' then right, wrong = keys[4], keys[3] end
  redis.call('ZREM', wrong, user)
  if not id then
    redis.call('ZREM', right, user)
    return nil
  end
  redis.call('ZADD', right, id, user)
  return id, era ~= '' and era or nil
end

local function next_erasure(keys, now)
  local id = integer(math.max((tonumber(redis.call('GET', keys[2]) or '0') or 0) + 1, now))
  redis.call('SET', keys[2], id)
  return id
end

-- ARGV: time, user.
local function note_erasure(keys, args)
  local id = next_erasure(keys, now_ms(args[1]))
  redis.call('HSET', keys[1], args[2], id .. ' ')
  file_erasure(keys, args[2])
  return id
end

-- KEYS: of erasures, then the plans of erasures of idle users: user → `id plan`. ARGV: time, user, plan. Returns the id, 0 where
-- another erasure of the user is unfinished.
local function plan_idle_erasure(keys, args)
  local noted, planned = redis.call('HGET', keys[1], args[2]), redis.call('HEXISTS', keys[5], args[2])
  if planned == 1 or noted and string.match(noted, '^%d+ $') then return '0' end
  local id = next_erasure(keys, now_ms(args[1]))
  redis.call('HSET', keys[5], args[2], id .. ' ' .. args[3])
  return id
end

-- KEYS: the same. ARGV: time, user, id, 1 where it took place.
local function settle_idle_erasure(keys, args)
  local user, id = args[2], args[3]
  local plan, noted = redis.call('HGET', keys[5], user), redis.call('HGET', keys[1], user)
  local noted_id = string.match(noted or '', '^%d+')
  if args[4] == '1' and (not noted_id or tonumber(noted_id) < tonumber(id)) then
    redis.call('HSET', keys[1], user, id .. ' ')
    file_erasure(keys, user)
  end
  if string.match(plan or '', '^%d+') == id then redis.call('HDEL', keys[5], user) end
  return 1
end

-- KEYS: a hash. ARGV: time, how much may have passed since the last call at most. Returns the sum of what passed.
local function quiet_time(keys, args)
  local now, stored = now_ms(args[1]), redis.call('HMGET', keys[1], 'ms', 'looked')
  local ms = tonumber(string.match(stored[1] or '', '^%d+$') or '0')
  local looked = tonumber(string.match(stored[2] or '', '^%d+$') or integer(now))
  ms = integer(ms + math.max(0, math.min(now - looked, tonumber(args[2]))))
  redis.call('HSET', keys[1], 'ms', ms, 'looked', integer(now))
  return ms
end

-- ARGV: time, user, id, era.
local function finish_erasure(keys, args)
  local noted = redis.call('HGET', keys[1], args[2])
  if not noted or string.match(noted, '^%d+') ~= args[3] then return 0 end
  redis.call('HSET', keys[1], args[2], args[3] .. ' ' .. args[4])
  file_erasure(keys, args[2])
  return 1
end

-- ARGV: time, id, how many at most. Returns the last id that was looked at, and user and id of the unfinished ones after the id.
local function unfinished_erasures(keys, args)
  local users = redis.call('ZRANGEBYSCORE', keys[3], '(' .. args[2], '+inf', 'WITHSCORES', 'LIMIT', 0, args[3])
  local last, found = args[2], {}
  for at = 1, #users, 2 do
    local id, era = file_erasure(keys, users[at])
    if id and not era then found[#found + 1] = { users[at], id } end
    last = integer(tonumber(users[at + 1]))
  end
  return { last, found }
end

-- ARGV: time, users who stand in the hash. What an older build noted is found from then on.
local function file_erasures(keys, args)
  for at = 2, #args do file_erasure(keys, args[at]) end
  return #args - 1
end

-- ARGV: time, ids below which finished ones go, how many are looked at. Returns how many were, and how many went.
local function expire_erasures(keys, args)
  local users, gone = redis.call('ZRANGEBYSCORE', keys[4], '-inf', '(' .. args[2], 'LIMIT', 0, args[3]), 0
  for _, user in ipairs(users) do
    local id, era = file_erasure(keys, user)
    if era and tonumber(id) < tonumber(args[2]) then
      redis.call('HDEL', keys[1], user)
      redis.call('ZREM', keys[4], user)
      gone = gone + 1
    end
  end
  return { #users, gone }
end

-- ---- chores: work that one process at a time does for all. KEYS: token, ends, place, done.

-- ARGV: time, token, ms between one end and the next beginning, ms of the lease. Returns where to go on, or nil: another has it, or it
-- was done not long ago.
local function begin_chore(keys, args)
  local now, held = now_ms(args[1]), redis.call('HMGET', keys[1], 'ends', 'place', 'done')
  if tonumber(held[1] or '0') > now then return nil end
  local place = held[2] or ''
  if place == '' and tonumber(held[3] or '0') + tonumber(args[3]) > now then return nil end
  redis.call('HSET', keys[1], 'token', args[2], 'ends', integer(now + tonumber(args[4])), 'place', place)
  return place
end

-- ARGV: time, token, the place reached (empty: it is done), ms of the lease. Returns whether the token held it.
local function go_on_with_chore(keys, args)
  local now = now_ms(args[1])
  if redis.call('HGET', keys[1], 'token') ~= args[2] then return 0 end
  if args[3] == '' then
    redis.call('HSET', keys[1], 'token', '', 'ends', '0', 'place', '', 'done', integer(now))
  else
    redis.call('HSET', keys[1], 'ends', integer(now + tonumber(args[4])), 'place', args[3])
  end
  return 1
end

-- ---- due queue. A user stands in the queue of a shard once: waiting or leased. While programs that know no layout 3 may come
-- back, a queue has several forms: that of all spaces first, then those of single spaces, which such programs know.
--
-- KEYS of a form: one sorted set a class, the leases' ends, the leases (`token class due [again's class, due]`); of callers who wait,
-- until when (sorted set), and where their users stood before (`class due`, and their due time in class 0, by which a mark of
-- somebody else is told apart). KEYS of a queue: its forms, and the two of what is put aside. Functions that take several queues
-- get their keys one queue after the other. ARGV of all: time, forms of each queue, the one where users are marked who stand
-- nowhere (1 once layout 3 is written); what follows is said at each function.

local LEASES, LEASED, UNTIL, STOOD = CLASSES + 1, CLASSES + 2, CLASSES + 3, CLASSES + 4
local FORM_KEYS = CLASSES + 4
-- The rest of a form's table: what is put aside, of the whole queue.
local ASIDE = FORM_KEYS + 1

-- Forms of single spaces that hold nothing are left out: mostly that is all of them.
local function queues_of(keys, args)
  local count, into, queues = tonumber(args[2]), tonumber(args[3]), {}
  local size = count * FORM_KEYS + 2
  for at = 1, #keys, size do
    local queue = {}
    for nth = 1, count do
      local first = at + (nth - 1) * FORM_KEYS
      local form = { unpack(keys, first, first + FORM_KEYS - 1) }
      if nth == 1 or nth == into or redis.call('EXISTS', unpack(form, 1, LEASED)) > 0 then
        form[ASIDE], form[ASIDE + 1] = keys[at + size - 2], keys[at + size - 1]
        queue[#queue + 1] = form
        if nth == into then queue.into = #queue end
      end
    end
    queues[#queues + 1] = queue
  end
  return queues
end

local function place_of(form, user)
  for class = 0, CLASSES - 1 do
    local due = redis.call('ZSCORE', form[class + 1], user)
    if due then return class, tonumber(due) end
  end
end

local function wait(form, user, class, due)
  local old_class, old_due = place_of(form, user)
  if old_class then
    if old_class <= class and old_due <= due then return end
    if old_class > class then redis.call('ZREM', form[old_class + 1], user) end
    class, due = math.min(class, old_class), math.min(due, old_due)
  end
  redis.call('ZADD', form[class + 1], integer(due), user)
end

local function end_lease(form, user)
  redis.call('ZREM', form[LEASES], user)
  redis.call('HDEL', form[LEASED], user)
end

local function lease_of(form, user)
  local stored = redis.call('HGET', form[LEASED], user)
  if not stored then return nil end
  local token, class, due, rest = string.match(stored, '^(%d+) (%d+) (%-?%d+)(.*)$')
  if not token or tonumber(class) >= CLASSES then
    -- A lease that is none ends at once: the sweep finds who was meant.
    end_lease(form, user)
    keep_aside({ form[ASIDE], form[ASIDE + 1] }, now_ms(''), user, form[LEASED], stored)
    return nil
  end
  local lease = { token = token, class = tonumber(class), due = tonumber(due) }
  local again_class, again_due = string.match(rest, '^ (%d+) (%-?%d+)')
  if again_class and tonumber(again_class) < CLASSES then lease.again_class, lease.again_due = tonumber(again_class), tonumber(again_due) end
  return lease
end

local function keep_lease(form, user, lease)
  local stored = string.format('%s %d %.0f', lease.token, lease.class, lease.due)
  if lease.again_class then stored = string.format('%s %d %.0f', stored, lease.again_class, lease.again_due) end
  redis.call('HSET', form[LEASED], user, stored)
end

-- Who is marked while leased is due again after the lease.
local function mark_again(lease, class, due)
  lease.again_class, lease.again_due = math.min(class, lease.again_class or class), math.min(due, lease.again_due or due)
end

local function mark_in(form, user, class, due)
  local lease = lease_of(form, user)
  if not lease then return wait(form, user, class, due) end
  mark_again(lease, class, due)
  keep_lease(form, user, lease)
end

-- Class and due time of a user who waits, or who will when the lease ends.
local function stands(form, user)
  local lease = lease_of(form, user)
  if lease then return lease.again_class, lease.again_due end
  return place_of(form, user)
end

-- Puts a user before everybody for as long as a caller waits. Who stands in class 0 for good already stays so.
local function await_in(form, user, due, until_ms)
  local class, stood_due = stands(form, user)
  local back = class and string.format('%d %.0f', class, stood_due) or string.format('%d %.0f', CLASSES - 1, due)
  local noted = redis.call('HGET', form[STOOD], user)
  if class == 0 then
    local old_back, noted_due = string.match(noted or '', '^(%d+ %-?%d+) (%-?%d+)$')
    local is_ours = noted_due and tonumber(noted_due) == stood_due
    back = is_ours and old_back or nil
    until_ms = math.max(until_ms, tonumber(redis.call('ZSCORE', form[UNTIL], user) or '0'))
  end
  mark_in(form, user, 0, due)
  if back then
    local _, now_due = stands(form, user)
    redis.call('HSET', form[STOOD], user, string.format('%s %.0f', back, now_due))
    redis.call('ZADD', form[UNTIL], integer(until_ms), user)
  elseif noted then
    redis.call('HDEL', form[STOOD], user)
    redis.call('ZREM', form[UNTIL], user)
  end
end

-- Brings a user who waits in one form into another one, where they wait, too, or are due again after their lease; callers who wait
-- for them go along. Removed last: what goes wrong on the way leaves a user twice, never forgotten.
local function bring(from, to, user)
  local class, due = place_of(from, user)
  if not class then return end
  local ends, noted = redis.call('ZSCORE', from[UNTIL], user), redis.call('HGET', from[STOOD], user)
  local back_class, back_due, noted_due = string.match(noted or '', '^(%d+) (%-?%d+) (%-?%d+)$')
  if ends and class == 0 and noted_due and tonumber(noted_due) == due then
    mark_in(to, user, tonumber(back_class), tonumber(back_due))
    await_in(to, user, due, tonumber(ends))
  else
    mark_in(to, user, class, due)
  end
  redis.call('ZREM', from[class + 1], user)
  if ends then redis.call('ZREM', from[UNTIL], user) end
  if noted then redis.call('HDEL', from[STOOD], user) end
end

-- The form that keeps a user: where a lease of theirs runs, else where they wait, else where users are marked. Who waits in the form
-- of a space is brought into that of all spaces once users are marked there.
local function home(queue, user)
  if #queue == 1 then return queue[1] end
  for _, form in ipairs(queue) do
    if lease_of(form, user) then return form end
  end
  if queue.into == 1 then
    for nth = 2, #queue do bring(queue[nth], queue[1], user) end
    return queue[1]
  end
  for _, form in ipairs(queue) do
    if place_of(form, user) then return form end
  end
  return queue[queue.into]
end

-- Leases that a call ends at most, over all its queues.
local ENDED = 150

-- Ends leases of a form whose time is over, `limit` at most; returns how many more it could have ended, 0 = some may be left.
local function end_leases(form, now, limit)
  if limit <= 0 then return 0 end
  local users = redis.call('ZRANGEBYSCORE', form[LEASES], '-inf', integer(now), 'LIMIT', 0, limit)
  for _, user in ipairs(users) do
    local lease = lease_of(form, user)
    if lease then
      wait(form, user, lease.class, lease.due)
      if lease.again_class then wait(form, user, lease.again_class, lease.again_due) end
    end
    end_lease(form, user)
  end
  return limit - #users
end

-- KEYS: of several queues. ARGV: then which queue (from 1), user, class, due of each.
local function mark(keys, args)
  local queues = queues_of(keys, args)
  for at = 4, #args, 4 do
    local user = args[at + 1]
    mark_in(home(queues[tonumber(args[at])], user), user, tonumber(args[at + 2]), tonumber(args[at + 3]))
  end
  return (#args - 3) / 4
end

local function is_absent(queue, user)
  for _, form in ipairs(queue) do
    if place_of(form, user) or lease_of(form, user) then return false end
  end
  return true
end

-- ARGV: then class, users. Marks those who neither wait nor are leased due now; returns how many.
local function mark_absent(keys, args)
  local queue, now, marked = queues_of(keys, args)[1], now_ms(args[1]), 0
  for at = 5, #args do
    if is_absent(queue, args[at]) then
      redis.call('ZADD', queue[queue.into][tonumber(args[4]) + 1], integer(now), args[at])
      marked = marked + 1
    end
  end
  return marked
end

-- KEYS: of several queues. ARGV: then limit. Returns how many members were put aside, then class, due, user of the first who are
-- due in each form, class by class; less urgent classes only where the more urgent ones do not reach the limit. Only
-- `more` where leases are left to end first: to be called again.
local function peek(keys, args)
  put_aside = 0
  local now, found, left, forms = now_ms(args[1]), {}, tonumber(args[4]), {}
  local may_end = ENDED
  for _, queue in ipairs(queues_of(keys, args)) do
    for _, form in ipairs(queue) do
      may_end, forms[#forms + 1] = end_leases(form, now, may_end), form
    end
  end
  if may_end == 0 then return { 'more' } end
  for class = 0, CLASSES - 1 do
    local limit = left
    if limit <= 0 then break end
    for _, form in ipairs(forms) do
      local users = redis.call('ZRANGEBYSCORE', form[class + 1], '-inf', integer(now), 'WITHSCORES', 'LIMIT', 0, limit)
      for at = 1, #users, 2 do
        local user, due = users[at], tonumber(users[at + 1])
        if is_id(user) and math.abs(due) < 2 ^ 53 then
          found[#found + 1] = integer(class)
          found[#found + 1] = integer(due)
          found[#found + 1] = user
          left = left - 1
        else
          redis.call('ZREM', form[class + 1], user)
          keep_aside({ form[ASIDE], form[ASIDE + 1] }, now, user, form[class + 1], users[at + 1])
        end
      end
    end
  end
  table.insert(found, 1, integer(put_aside))
  return found
end

-- Whether one who waits in a form may be leased there: not while a lease runs in another one, to which the mark is handed then. Where
-- they wait elsewhere, too, that mark is served with this one.
local function leave_others(queue, form, user)
  for _, other in ipairs(queue) do
    if other ~= form and lease_of(other, user) then
      bring(form, other, user)
      return false
    end
  end
  for _, other in ipairs(queue) do
    local class = other ~= form and place_of(other, user)
    if class then redis.call('ZREM', other[class + 1], user) end
  end
  return true
end

local function take_one(queue, user, class, due, lease, ends)
  for _, form in ipairs(queue) do
    local score = redis.call('ZSCORE', form[class + 1], user)
    if score and tonumber(score) == due then
      if #queue > 1 and not leave_others(queue, form, user) then return 0 end
      redis.call('ZREM', form[class + 1], user)
      redis.call('ZADD', form[LEASES], integer(ends), user)
      redis.call('HSET', form[LEASED], user, lease)
      return 1
    end
  end
  return 0
end

-- KEYS: of several queues. ARGV: then lease in ms, then which queue (from 1), user, class, due, token of each. Returns a flag of
-- each: 1 taken, 0 no longer there.
local function take(keys, args)
  local ends, taken, queues = now_ms(args[1]) + tonumber(args[4]), {}, queues_of(keys, args)
  for at = 5, #args, 5 do
    local class, due = args[at + 2], args[at + 3]
    local lease = args[at + 4] .. ' ' .. class .. ' ' .. due
    taken[#taken + 1] = take_one(queues[tonumber(args[at])], args[at + 1], tonumber(class), tonumber(due), lease, ends)
  end
  return taken
end

-- The form in which that token holds the user, and the lease.
local function holder(queue, now, user, token)
  for _, form in ipairs(queue) do
    local lease = lease_of(form, user)
    if lease and lease.token == token then
      local ends = redis.call('ZSCORE', form[LEASES], user)
      if not ends or tonumber(ends) <= now then return nil end
      return form, lease
    end
  end
end

-- ARGV: then user, token, lease in ms.
local function renew(keys, args)
  local now = now_ms(args[1])
  local form = holder(queues_of(keys, args)[1], now, args[4], args[5])
  if not form then return 0 end
  redis.call('ZADD', form[LEASES], integer(now + tonumber(args[6])), args[4])
  return 1
end

-- ARGV: then user, token.
local function release(keys, args)
  local user = args[4]
  local form, lease = holder(queues_of(keys, args)[1], now_ms(args[1]), user, args[5])
  if not form then return 0 end
  end_lease(form, user)
  if lease.again_class then wait(form, user, lease.again_class, lease.again_due) end
  return 1
end

-- ARGV: then user. A running lease stays, without the marks made since.
local function forget(keys, args)
  local queue, user, now = queues_of(keys, args)[1], args[4], now_ms(args[1])
  for _, form in ipairs(queue) do
    local lease, ends = lease_of(form, user), redis.call('ZSCORE', form[LEASES], user)
    if ends and tonumber(ends) <= now then
      end_lease(form, user)
    elseif lease then
      lease.again_class = nil
      keep_lease(form, user, lease)
    end
    for class = 1, CLASSES do redis.call('ZREM', form[class], user) end
  end
  return clear_aside({ queue[1][ASIDE], queue[1][ASIDE + 1] }, { args[1], user })
end

-- ARGV: no more. Returns the number of leases, then class, length, oldest due of each class in use, form by form; only -1 where leases
-- are left to end first: to be called again.
local function depth(keys, args)
  local queue, now, may_end, leases = queues_of(keys, args)[1], now_ms(args[1]), ENDED, 0
  for _, form in ipairs(queue) do may_end = end_leases(form, now, may_end) end
  if may_end == 0 then return { -1 } end
  local found = { 0 }
  for _, form in ipairs(queue) do
    leases = leases + redis.call('ZCARD', form[LEASES])
    for class = 0, CLASSES - 1 do
      local first = redis.call('ZRANGE', form[class + 1], 0, 0, 'WITHSCORES')
      if first[1] then
        found[#found + 1] = class
        found[#found + 1] = redis.call('ZCARD', form[class + 1])
        found[#found + 1] = tonumber(first[2])
      end
    end
  end
  found[1] = leases
  return found
end

-- ARGV: then until when, due, users. They are in class 0 for so long.
local function mark_awaited(keys, args)
  local queue, until_ms, due = queues_of(keys, args)[1], tonumber(args[4]), tonumber(args[5])
  for at = 6, #args do await_in(home(queue, args[at]), args[at], due, until_ms) end
  return #args - 5
end

-- Sends one back, if the mark in class 0 is still the noted one.
local function go_back(form, user, class, due, noted_due)
  local score = redis.call('ZSCORE', form[1], user)
  if score then
    if tonumber(score) ~= noted_due then return end
    redis.call('ZREM', form[1], user)
    return wait(form, user, class, due)
  end
  local lease = lease_of(form, user)
  if not lease then return end
  if lease.class == 0 and lease.due == noted_due then lease.class, lease.due = class, due end
  if lease.again_class == 0 and lease.again_due == noted_due then lease.again_class, lease.again_due = class, due end
  keep_lease(form, user, lease)
end

-- Of a form, `limit` at most; returns how many.
local function end_awaited_in(form, now, limit)
  local users = redis.call('ZRANGEBYSCORE', form[UNTIL], '-inf', integer(now), 'LIMIT', 0, limit)
  for _, user in ipairs(users) do
    local noted = redis.call('HGET', form[STOOD], user) or ''
    local class, due, noted_due = string.match(noted, '^(%d+) (%-?%d+) (%-?%d+)$')
    if class then go_back(form, user, tonumber(class), tonumber(due), tonumber(noted_due)) end
    redis.call('ZREM', form[UNTIL], user)
    redis.call('HDEL', form[STOOD], user)
  end
  return #users
end

-- KEYS: of several queues. ARGV: no more. Users whose callers' time is over go back to where they stood, no more than 100 in one call.
local function end_awaited(keys, args)
  local now, left = now_ms(args[1]), 100
  for _, queue in ipairs(queues_of(keys, args)) do
    for _, form in ipairs(queue) do
      if left > 0 then left = left - end_awaited_in(form, now, left) end
    end
  end
  return 100 - left
end

-- A lease goes with its end and its token; who waits or is leased in the other form, too, is due again after it.
local function bring_lease(from, to, user, now)
  local lease, ends = lease_of(from, user), redis.call('ZSCORE', from[LEASES], user)
  local caller_ends, noted = redis.call('ZSCORE', from[UNTIL], user), redis.call('HGET', from[STOOD], user)
  if lease and lease_of(to, user) then
    mark_in(to, user, lease.again_class or lease.class, lease.again_due or lease.due)
  elseif lease then
    local class, due = place_of(to, user)
    if class then
      mark_again(lease, class, due)
      redis.call('ZREM', to[class + 1], user)
    end
    redis.call('ZADD', to[LEASES], ends or integer(now), user)
    keep_lease(to, user, lease)
    if caller_ends and noted then
      redis.call('ZADD', to[UNTIL], caller_ends, user)
      redis.call('HSET', to[STOOD], user, noted)
    end
  end
  end_lease(from, user)
end

-- KEYS: of a queue of two forms. ARGV: then how many at most, 1 where leases that run go along or 0. Moves users of the form of a space into
-- that of all spaces; returns how many steps it took, fewer than the most = nothing is left to do. Without the leases: a program that knows the old
-- form alone may hold them.
local function move(keys, args)
  local queue, now, limit = queues_of(keys, args)[1], now_ms(args[1]), tonumber(args[4])
  if #queue == 1 then return 0 end
  local to, from = queue[1], queue[2]
  local left = end_leases(from, now, limit)
  for class = 1, CLASSES do
    if left <= 0 then return limit end
    local users = redis.call('ZRANGE', from[class], 0, left - 1)
    for _, user in ipairs(users) do bring(from, to, user) end
    left = left - #users
  end
  if args[5] == '1' and left > 0 then
    local users = redis.call('ZRANGE', from[LEASES], 0, left - 1)
    for _, user in ipairs(users) do bring_lease(from, to, user, now) end
    left = left - #users
  end
  return limit - left
end

-- ---- feeds. KEYS: member → id (sorted set), member → value (hash), last id.

-- ARGV: time, user, `era seq turn`, value. A late writer does not take the newest out; an equal one replaces it. Returns
-- the entry's id.
local function feed_vector(keys, args)
  local old = redis.call('HGET', keys[2], args[2])
  if old then
    local era, seq, turn = string.match(old, '^(%d+) (%d+) (%d+) ')
    -- What cannot be read gives way.
    local id = era and redis.call('ZSCORE', keys[1], args[2])
    local new_era, new_seq, new_turn = string.match(args[3], '^(%d+) (%d+) (%d+)$')
    local stored, fresh = { era, seq, turn }, { new_era, new_seq, new_turn }
    for nth = 1, id and 3 or 0 do
      local left, right = tonumber(stored[nth]), tonumber(fresh[nth])
      if left > right then return integer(tonumber(id)) end
      if left < right then break end
    end
  end
  local id = redis.call('INCR', keys[3])
  redis.call('ZADD', keys[1], id, args[2])
  redis.call('HSET', keys[2], args[2], args[3] .. ' ' .. args[4])
  return integer(id)
end

-- ARGV: time, then member and value of each.
local function feed_items(keys, args)
  for at = 2, #args, 2 do
    redis.call('ZADD', keys[1], redis.call('INCR', keys[3]), args[at])
    redis.call('HSET', keys[2], args[at], args[at + 1])
  end
  return (#args - 1) / 2
end

-- ARGV: time, cursor, limit. Returns the cursor read from, then member, id and value of each entry after it. A cursor beyond the last
-- id is of a feed that is gone: it is read from the start.
local function feed_page(keys, args)
  local cursor, last = args[2], redis.call('GET', keys[3]) or '0'
  if tonumber(cursor) > tonumber(last) then cursor = '0' end
  local members = redis.call('ZRANGEBYSCORE', keys[1], '(' .. cursor, '+inf', 'WITHSCORES', 'LIMIT', 0, args[3])
  local page = {}
  for at = 1, #members, 2 do
    page[#page + 1] = members[at]
    page[#page + 1] = members[at + 1]
    page[#page + 1] = redis.call('HGET', keys[2], members[at]) or ''
  end
  return { cursor, page }
end

-- KEYS: an item's users. ARGV: time, hashes of users. Returns how many are known; a full set never changes.
local function item_users(keys, args)
  local known = redis.call('SCARD', keys[1])
  for at = 2, #args do
    if known >= ITEM_USERS_CAP then break end
    known = known + redis.call('SADD', keys[1], args[at])
  end
  return known
end

-- ---- processes

-- KEYS: a process's entry. ARGV: time, how long it lives unless renewed in ms, then fields and values.
local function member(keys, args)
  redis.call('HSET', keys[1], 'time', integer(now_ms(args[1])), unpack(args, 3))
  redis.call('PEXPIRE', keys[1], args[2])
  return 1
end

-- Without keys, so that any master can be asked whether it holds this library.
local function present() return 1 end

redis.register_function({ function_name = LIBRARY .. '_present', callback = present, flags = { 'no-writes', 'allow-oom', 'allow-stale' } })
redis.register_function(LIBRARY .. '_member', member)
redis.register_function(LIBRARY .. '_append', append)
redis.register_function(LIBRARY .. '_put', put)
redis.register_function(LIBRARY .. '_rewrite', rewrite)
redis.register_function({ function_name = LIBRARY .. '_erase', callback = erase, flags = { 'allow-oom' } })
redis.register_function(LIBRARY .. '_note_erasure', note_erasure)
redis.register_function(LIBRARY .. '_plan_idle_erasure', plan_idle_erasure)
redis.register_function(LIBRARY .. '_settle_idle_erasure', settle_idle_erasure)
redis.register_function(LIBRARY .. '_quiet_time', quiet_time)
redis.register_function(LIBRARY .. '_finish_erasure', finish_erasure)
redis.register_function(LIBRARY .. '_expire_erasures', expire_erasures)
redis.register_function(LIBRARY .. '_unfinished_erasures', unfinished_erasures)
redis.register_function(LIBRARY .. '_file_erasures', file_erasures)
redis.register_function(LIBRARY .. '_begin_chore', begin_chore)
redis.register_function(LIBRARY .. '_go_on_with_chore', go_on_with_chore)
redis.register_function(LIBRARY .. '_set_aside', set_aside)
redis.register_function(LIBRARY .. '_clear_aside', clear_aside)
redis.register_function(LIBRARY .. '_expire_aside', expire_aside)
redis.register_function(LIBRARY .. '_forget', forget)
redis.register_function(LIBRARY .. '_mark', mark)
redis.register_function(LIBRARY .. '_mark_absent', mark_absent)
redis.register_function(LIBRARY .. '_mark_awaited', mark_awaited)
redis.register_function(LIBRARY .. '_end_awaited', end_awaited)
redis.register_function(LIBRARY .. '_peek', peek)
redis.register_function(LIBRARY .. '_take', take)
redis.register_function(LIBRARY .. '_renew', renew)
redis.register_function({ function_name = LIBRARY .. '_release', callback = release, flags = { 'allow-oom' } })
redis.register_function(LIBRARY .. '_depth', depth)
redis.register_function(LIBRARY .. '_move', move)
redis.register_function(LIBRARY .. '_feed_vector', feed_vector)
redis.register_function(LIBRARY .. '_feed_items', feed_items)
redis.register_function({ function_name = LIBRARY .. '_feed_page', callback = feed_page, flags = { 'no-writes', 'allow-oom' } })
redis.register_function(LIBRARY .. '_item_users', item_users)
