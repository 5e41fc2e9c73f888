#!lua name=taiji_1
-- taiji's functions inside Redis, schema version 1. Loaded by `taiji migrate`; called by src/store/redis.
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

local EPOCH = 175921860444160
local HISTORY_CAP, QUERY_CAP, PROFILE_CAP, ITEM_USERS_CAP = 100, 20, 64, 5
local OPT_OUT = 'cross_opt_out'
local CLASSES = 4

local function now_ms(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function integer(number) return string.format('%.0f', number) end

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

local WALK = 32

local function keeps(lists, id)
  return redis.call('LPOS', lists[1], id) or redis.call('LPOS', lists[2], id) or redis.call('LPOS', lists[3], id)
end

local function is_body(element)
  local first = string.byte(element, 1)
  return first ~= nil and first >= 0x80 and first <= 0xBF
end

-- The body of a list's first entry, or nil. Before it may stand ids without a body.
local function first_body(list)
  local second = redis.call('LINDEX', list, 1)
  if not second then return nil end
  if is_body(second) and #second >= 6 then return second end
  for _, element in ipairs(redis.call('LRANGE', list, 2, WALK)) do
    if is_body(element) and #element >= 6 then return element end
  end
  error(redis.error_reply('WRONGTYPE no kept list at ' .. list))
end

-- The first kept entry's id that sorts below (ts, id), or nil; and how many sort above.
local function place_in(list, ts, id)
  local above, from, kept = 0, 0, nil
  while true do
    local part = redis.call('LRANGE', list, from, from + WALK - 1)
    for _, element in ipairs(part) do
      if not is_body(element) then
        kept = element
      elseif kept then
        local kept_ts = ts_at(element, 1)
        if kept_ts < ts or (kept_ts == ts and id_above(id, kept)) then return kept, above end
        above, kept = above + 1, nil
      end
    end
    if #part < WALK then return nil, above end
    from = from + #part
  end
end

-- Puts an entry in its place; false when `cap` entries sort above it. Most are newer than everything kept.
local function insert(list, ts, id, stored, cap)
  local newest, length = first_body(list), nil
  if not newest or ts > ts_at(newest, 1) then
    length = redis.call('LPUSH', list, stored, id)
  else
    local below, above = place_in(list, ts, id)
    if above >= cap then return false end
    if below then
      redis.call('LINSERT', list, 'BEFORE', below, id)
      length = redis.call('LINSERT', list, 'BEFORE', below, stored)
    else
      length = redis.call('RPUSH', list, id, stored)
    end
  end
  if length > 2 * cap then redis.call('RPOP', list, 2) end
  return true
end

-- ---- profile

local function profile_of(key)
  local profile, flat = { size = 0, values = {}, changed = {} }, redis.call('HGETALL', key)
  for at = 1, #flat, 2 do
    profile.values[flat[at]] = flat[at + 1]
    profile.size = profile.size + 1
  end
  return profile
end

-- (ts, id) of a stored attribute, which is `ts | id length | id | value`.
local function stamp_of(value)
  return ts_at(value, 1), string.sub(value, 8, 7 + string.byte(value, 7))
end

local function is_newer(ts, id, stored)
  local stored_ts, stored_id = stamp_of(stored)
  if ts ~= stored_ts then return ts > stored_ts end
  return id_above(id, stored_id)
end

local function evict_older_than(profile, ts, id)
  local oldest
  for name, value in pairs(profile.values) do
    if name ~= OPT_OUT then
      if oldest == nil then
        oldest = name
      else
        local old_ts, old_id = stamp_of(profile.values[oldest])
        local a_ts, an_id = stamp_of(value)
        local same = a_ts == old_ts and an_id == old_id
        if (same and id_above(oldest, name)) or (not same and not is_newer(a_ts, an_id, profile.values[oldest])) then
          oldest = name
        end
      end
    end
  end
  if oldest == nil or not is_newer(ts, id, profile.values[oldest]) then return false end
  profile.values[oldest] = nil
  profile.changed[oldest] = false
  profile.size = profile.size - 1
  return true
end

local function merge(profile, ts, id, head, args, first, pairs_count)
  local newer = false
  for nth = 0, pairs_count - 1 do
    local name, value = args[first + nth * 2], args[first + nth * 2 + 1]
    local stored = profile.values[name]
    local takes = stored == nil or is_newer(ts, id, stored)
    if takes and stored == nil and profile.size >= PROFILE_CAP then takes = evict_older_than(profile, ts, id) end
    if takes then
      if stored == nil then profile.size = profile.size + 1 end
      profile.values[name] = head .. value
      profile.changed[name] = head .. value
      newer = true
    end
  end
  return newer
end

local function write_profile(key, profile)
  for name, value in pairs(profile.changed) do
    if value then redis.call('HSET', key, name, value) else redis.call('HDEL', key, name) end
  end
end

-- ---- append

local CAPS = { HISTORY_CAP, HISTORY_CAP, QUERY_CAP }
local LIST_OF = { e = 1, i = 2, q = 3 }

-- KEYS: st, engagements, impressions, queries, profile.
-- ARGV: time, space, the kind of each record (e, i, q, p; n enters nothing), then of each record: weight, event id, `ts | body`;
-- of p also the number of attributes, then name and value of each.
-- Returns a flag of each record (a accepted, k kept already, o too old), whether the user is new, the state, refreshed.
--
-- Every list was asked for the first id before the first entry is written, and the profile before all: a key of
-- another type ends the call while nothing is changed.
local function append(keys, args)
  local st = redis.call('HMGET', keys[1], 'seq', 'weight', 'last_refresh_ms', 'era', 'erased_before_ms',
    'erased_seq', 'r:' .. args[2])
  local seq, weight = tonumber(st[1] or '0'), tonumber(st[2] or '0')
  local erased = tonumber(st[5] or '0')
  local kinds, lists, flags, at = args[3], { keys[2], keys[3], keys[4] }, {}, 4
  local profile = string.find(kinds, 'p', 1, true) and profile_of(keys[5])
  for nth = 1, #kinds do
    local kind, id, stored = string.sub(kinds, nth, nth), args[at + 1], args[at + 2]
    local ts, list, flag = ts_at(stored, 1), LIST_OF[kind], 'o'
    if erased ~= 0 and ts <= erased then
      flag = 'o'
    elseif keeps(lists, id) then
      flag = 'k'
    elseif kind == 'p' then
      local head = string.sub(stored, 1, 6) .. string.char(#id) .. id
      if merge(profile, ts, id, head, args, at + 4, tonumber(args[at + 3])) then flag = 'a' end
    elseif list and insert(lists[list], ts, id, stored, CAPS[list]) then
      flag = 'a'
    end
    if flag == 'a' then
      seq, weight = seq + 1, weight + tonumber(args[at])
    end
    flags[nth] = flag
    at = at + 3
    if kind == 'p' then at = at + 1 + 2 * tonumber(args[at]) end
  end
  local flags_text = table.concat(flags)
  local weight_text, is_new = string.format('%.17g', weight), 0
  if string.find(flags_text, 'a', 1, true) then
    if not st[1] then is_new = 1 end
    redis.call('HSET', keys[1], 'seq', integer(seq), 'weight', weight_text)
    if profile then write_profile(keys[5], profile) end
  end
  return { flags_text, is_new, integer(seq), weight_text, st[3] or '0', st[4] or '0', st[5] or '0', st[6] or '0',
    st[7] or '' }
end

-- ---- features

-- KEYS: st, features. ARGV: time, space, era, seq, turn, revision read, note the refresh (1 or 0), expiry in ms or empty, then
-- fields and values. The caller decided by the version rules on what it had read; this writes only if that still stands.
local function put(keys, args)
  local st = redis.call('HMGET', keys[1], 'seq', 'era')
  local current, revision = tonumber(st[1] or '0'), redis.call('HGET', keys[2], 'rev') or '0'
  if (st[2] or '0') ~= args[3] then return { 'era', 0, 0 } end
  if tonumber(args[4]) > current then return { 'future', 0, 0 } end
  if revision ~= args[6] then return { 'changed', 0, 0 } end
  redis.call('HSET', keys[2], 'rev', integer(tonumber(revision) + 1), unpack(args, 9))
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
  redis.call('HSET', keys[1], 'rev', integer(tonumber(revision) + 1), unpack(args, 3))
  return 1
end

-- ---- erasure

-- KEYS: st, engagements, impressions, queries, profile, then the features of every space. ARGV: time, id of the erasure, the
-- spaces. Returns whether a space is missing, whether the user is new, and the counters; an id not above the last changes nothing.
local function erase(keys, args)
  local st = redis.call('HMGET', keys[1], 'seq', 'weight', 'last_refresh_ms', 'era', 'erased_before_ms', 'erased_seq', 'erasure')
  local function state(changed)
    return { changed, st[1] and 0 or 1, st[1] or '0', st[2] or '0', st[3] or '0', st[4] or '0', st[5] or '0', st[6] or '0' }
  end
  if tonumber(args[2]) <= tonumber(st[7] or '0') then return state(0) end
  local given, refreshed = {}, {}
  for at = 3, #args do given['r:' .. args[at]] = true end
  for _, field in ipairs(redis.call('HKEYS', keys[1])) do
    if string.sub(field, 1, 2) == 'r:' then
      if not given[field] then return { 1, 0, '0', '0', '0', '0', '0', '0' } end
      refreshed[#refreshed + 1] = field
    end
  end
  local newest = math.max(now_ms(args[1]), tonumber(st[5] or '0'))
  for nth = 1, 3 do
    local stored = first_body(keys[nth + 1])
    if stored then newest = math.max(newest, ts_at(stored, 1)) end
  end
  for _, value in ipairs(redis.call('HVALS', keys[5])) do newest = math.max(newest, ts_at(value, 1)) end
  local was_new = not st[1]
  local seq = st[1] or '0'
  st[2], st[3], st[4], st[5], st[6] = '0', '0', integer(tonumber(st[4] or '0') + 1), integer(newest), seq
  redis.call('DEL', unpack(keys, 2))
  for _, field in ipairs(refreshed) do redis.call('HDEL', keys[1], field) end
  redis.call('HSET', keys[1], 'seq', seq, 'weight', '0', 'last_refresh_ms', '0', 'era', st[4], 'erased_before_ms', st[5],
    'erased_seq', seq, 'erasure', args[2])
  local answer = state(0)
  answer[2] = was_new and 1 or 0
  return answer
end

-- KEYS: user → `id era` (era empty while unfinished), last id. ARGV: time, user.
local function note_erasure(keys, args)
  local id = math.max(tonumber(redis.call('GET', keys[2]) or '0') + 1, now_ms(args[1]))
  redis.call('SET', keys[2], integer(id))
  redis.call('HSET', keys[1], args[2], integer(id) .. ' ')
  return integer(id)
end

-- ARGV: time, user, id, era.
local function finish_erasure(keys, args)
  local noted = redis.call('HGET', keys[1], args[2])
  if not noted or string.match(noted, '^%d+') ~= args[3] then return 0 end
  redis.call('HSET', keys[1], args[2], args[3] .. ' ' .. args[4])
  return 1
end

-- ARGV: time, ids below which finished ones go.
local function expire_erasures(keys, args)
  local flat, gone = redis.call('HGETALL', keys[1]), 0
  for at = 1, #flat, 2 do
    local id, era = string.match(flat[at + 1], '^(%d+) (%d+)$')
    if era and tonumber(id) < tonumber(args[2]) then
      redis.call('HDEL', keys[1], flat[at])
      gone = gone + 1
    end
  end
  return gone
end

-- ---- due queue. KEYS of a queue: one sorted set a class, the leases' ends, the leases (`token class due [again's class, due]`).

local LEASES, LEASED = CLASSES + 1, CLASSES + 2

local function place_of(keys, user)
  for class = 0, CLASSES - 1 do
    local due = redis.call('ZSCORE', keys[class + 1], user)
    if due then return class, tonumber(due) end
  end
end

local function wait(keys, user, class, due)
  local old_class, old_due = place_of(keys, user)
  if old_class then
    if old_class <= class and old_due <= due then return end
    if old_class > class then redis.call('ZREM', keys[old_class + 1], user) end
    class, due = math.min(class, old_class), math.min(due, old_due)
  end
  redis.call('ZADD', keys[class + 1], integer(due), user)
end

local function lease_of(keys, user)
  local stored = redis.call('HGET', keys[LEASED], user)
  if not stored then return nil end
  local token, class, due, rest = string.match(stored, '^(%d+) (%d+) (%-?%d+)(.*)$')
  local lease = { token = token, class = tonumber(class), due = tonumber(due) }
  local again_class, again_due = string.match(rest, '^ (%d+) (%-?%d+)$')
  if again_class then lease.again_class, lease.again_due = tonumber(again_class), tonumber(again_due) end
  return lease
end

local function end_leases(keys, now)
  repeat
    local users = redis.call('ZRANGEBYSCORE', keys[LEASES], '-inf', integer(now), 'LIMIT', 0, 1000)
    for _, user in ipairs(users) do
      local lease = lease_of(keys, user)
      if lease then
        wait(keys, user, lease.class, lease.due)
        if lease.again_class then wait(keys, user, lease.again_class, lease.again_due) end
      end
      redis.call('ZREM', keys[LEASES], user)
      redis.call('HDEL', keys[LEASED], user)
    end
  until #users < 1000
end

local function mark_one(keys, user, class, due)
  local lease = lease_of(keys, user)
  if not lease then return wait(keys, user, class, due) end
  class, due = math.min(class, lease.again_class or class), math.min(due, lease.again_due or due)
  redis.call('HSET', keys[LEASED], user,
    string.format('%s %d %.0f %d %.0f', lease.token, lease.class, lease.due, class, due))
end

-- Functions that take several queues get their keys one queue after the other.
local function queues_of(keys)
  local queues = {}
  for at = 1, #keys, LEASED do queues[#queues + 1] = { unpack(keys, at, at + LEASED - 1) } end
  return queues
end

-- KEYS: of several queues. ARGV: time, then which queue (from 1), user, class, due of each.
local function mark(keys, args)
  local queues = queues_of(keys)
  for at = 2, #args, 4 do
    mark_one(queues[tonumber(args[at])], args[at + 1], tonumber(args[at + 2]), tonumber(args[at + 3]))
  end
  return (#args - 1) / 4
end

-- ARGV: time, class, users. Marks those who neither wait nor are leased due now; returns how many.
local function mark_absent(keys, args)
  local now, marked = now_ms(args[1]), 0
  for at = 3, #args do
    local user = args[at]
    if not place_of(keys, user) and redis.call('HEXISTS', keys[LEASED], user) == 0 then
      redis.call('ZADD', keys[tonumber(args[2]) + 1], integer(now), user)
      marked = marked + 1
    end
  end
  return marked
end

-- KEYS: of several queues. ARGV: time, limit. Returns class, due, user of the first who are due in each, class by class; less
-- urgent classes only where the more urgent ones do not reach the limit.
local function peek(keys, args)
  local now, found, left, queues = now_ms(args[1]), {}, tonumber(args[2]), queues_of(keys)
  for _, queue in ipairs(queues) do end_leases(queue, now) end
  for class = 0, CLASSES - 1 do
    local limit = left
    if limit <= 0 then break end
    for _, queue in ipairs(queues) do
      local users = redis.call('ZRANGEBYSCORE', queue[class + 1], '-inf', integer(now), 'WITHSCORES', 'LIMIT', 0, limit)
      for at = 1, #users, 2 do
        found[#found + 1] = integer(class)
        found[#found + 1] = integer(tonumber(users[at + 1]))
        found[#found + 1] = users[at]
        left = left - 1
      end
    end
  end
  return found
end

-- KEYS: of several queues. ARGV: time, lease in ms, then which queue (from 1), user, class, due, token of each. Returns a flag of
-- each: 1 taken, 0 no longer there.
local function take(keys, args)
  local ends, taken, queues = now_ms(args[1]) + tonumber(args[2]), {}, queues_of(keys)
  for at = 3, #args, 5 do
    local queue, user, class, due, token = queues[tonumber(args[at])], args[at + 1], args[at + 2], args[at + 3], args[at + 4]
    local score = redis.call('ZSCORE', queue[tonumber(class) + 1], user)
    if score and tonumber(score) == tonumber(due) then
      redis.call('ZREM', queue[tonumber(class) + 1], user)
      redis.call('ZADD', queue[LEASES], integer(ends), user)
      redis.call('HSET', queue[LEASED], user, token .. ' ' .. class .. ' ' .. due)
      taken[#taken + 1] = 1
    else
      taken[#taken + 1] = 0
    end
  end
  return taken
end

local function holds(keys, now, user, token)
  local lease = lease_of(keys, user)
  if not lease or lease.token ~= token then return nil end
  local ends = redis.call('ZSCORE', keys[LEASES], user)
  if not ends or tonumber(ends) <= now then return nil end
  return lease
end

-- ARGV: time, user, token, lease in ms.
local function renew(keys, args)
  local now = now_ms(args[1])
  if not holds(keys, now, args[2], args[3]) then return 0 end
  redis.call('ZADD', keys[LEASES], integer(now + tonumber(args[4])), args[2])
  return 1
end

-- ARGV: time, user, token.
local function release(keys, args)
  local lease = holds(keys, now_ms(args[1]), args[2], args[3])
  if not lease then return 0 end
  redis.call('ZREM', keys[LEASES], args[2])
  redis.call('HDEL', keys[LEASED], args[2])
  if lease.again_class then wait(keys, args[2], lease.again_class, lease.again_due) end
  return 1
end

-- ARGV: time, user. A running lease stays, without the marks made since.
local function forget(keys, args)
  local user = args[2]
  end_leases(keys, now_ms(args[1]))
  local lease = lease_of(keys, user)
  if lease then
    redis.call('HSET', keys[LEASED], user, string.format('%s %d %.0f', lease.token, lease.class, lease.due))
  end
  for class = 1, CLASSES do redis.call('ZREM', keys[class], user) end
  return 1
end

-- ARGV: time. Returns the number of leases, then class, length, oldest due of each class in use.
local function depth(keys, args)
  end_leases(keys, now_ms(args[1]))
  local found = { redis.call('ZCARD', keys[LEASES]) }
  for class = 0, CLASSES - 1 do
    local first = redis.call('ZRANGE', keys[class + 1], 0, 0, 'WITHSCORES')
    if first[1] then
      found[#found + 1] = class
      found[#found + 1] = redis.call('ZCARD', keys[class + 1])
      found[#found + 1] = tonumber(first[2])
    end
  end
  return found
end

-- ---- feeds. KEYS: member → id (sorted set), member → value (hash), last id.

-- ARGV: time, user, `era seq turn`, value. A late writer does not take the newest out; an equal one replaces it. Returns
-- the entry's id.
local function feed_vector(keys, args)
  local old = redis.call('HGET', keys[2], args[2])
  if old then
    local era, seq, turn = string.match(old, '^(%d+) (%d+) (%d+) ')
    local new_era, new_seq, new_turn = string.match(args[3], '^(%d+) (%d+) (%d+)$')
    local stored, fresh = { era, seq, turn }, { new_era, new_seq, new_turn }
    for nth = 1, 3 do
      local left, right = tonumber(stored[nth]), tonumber(fresh[nth])
      if left > right then return integer(tonumber(redis.call('ZSCORE', keys[1], args[2]))) end
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

-- ARGV: time, cursor, limit. Returns the cursor read from, then id and value of each entry after it. A cursor beyond the last
-- id is of a feed that is gone: it is read from the start.
local function feed_page(keys, args)
  local cursor, last = args[2], redis.call('GET', keys[3]) or '0'
  if tonumber(cursor) > tonumber(last) then cursor = '0' end
  local members = redis.call('ZRANGEBYSCORE', keys[1], '(' .. cursor, '+inf', 'WITHSCORES', 'LIMIT', 0, args[3])
  local page = {}
  for at = 1, #members, 2 do
    page[#page + 1] = integer(tonumber(members[at + 1]))
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

redis.register_function('taiji_1_append', append)
redis.register_function('taiji_1_put', put)
redis.register_function('taiji_1_rewrite', rewrite)
redis.register_function({ function_name = 'taiji_1_erase', callback = erase, flags = { 'allow-oom' } })
redis.register_function('taiji_1_note_erasure', note_erasure)
redis.register_function('taiji_1_finish_erasure', finish_erasure)
redis.register_function('taiji_1_expire_erasures', expire_erasures)
redis.register_function('taiji_1_forget', forget)
redis.register_function('taiji_1_mark', mark)
redis.register_function('taiji_1_mark_absent', mark_absent)
redis.register_function('taiji_1_peek', peek)
redis.register_function('taiji_1_take', take)
redis.register_function('taiji_1_renew', renew)
redis.register_function({ function_name = 'taiji_1_release', callback = release, flags = { 'allow-oom' } })
redis.register_function('taiji_1_depth', depth)
redis.register_function('taiji_1_feed_vector', feed_vector)
redis.register_function('taiji_1_feed_items', feed_items)
redis.register_function({ function_name = 'taiji_1_feed_page', callback = feed_page, flags = { 'no-writes', 'allow-oom' } })
redis.register_function('taiji_1_item_users', item_users)
