-- Limits: slots:<database>:<limit> is the set of references that hold one; buckets: <database>:<limit> -> tokens, the ms
-- at which they were counted, and the rate and burst that governed then; full: the same -> the ms at which it is full
-- again and may be forgotten (reclaim.lua). A limit is named g (everything), q<queue>, a<action tag> or
-- k<rule and value tags>; its numbers are {concurrency, rate, burst}, -1: none.
local function slots_key(database, name) return P .. 'slots:' .. database .. ':' .. name end

-- What a job counts against: name, numbers, ... of each.
local function counted(reference, lane, rules)
  local list, n = {}, 0
  local function add(name, numbers) list[n + 1], list[n + 2], n = name, numbers, n + 2 end
  if rules.everything then add('g', rules.everything) end
  local queue = rules.by_queue[queue_of(lane)]
  if queue then add('q' .. queue_of(lane), queue) end
  local action = action_of(reference)
  if rules.by_action[action] then add('a' .. hex(action), rules.by_action[action]) end
  local key = limit_of(reference)
  local its = key and rules.by_key[sub(key, 1, 4)]
  if its then add('k' .. hex(key), its) end
  return list
end

-- Tokens in a bucket now, and the ms at which there is one (nil: never). Without a rate: nil. One that was full by the
-- numbers that governed when it was counted is full: whether reclaim has forgotten it since makes no difference.
local function tokens_of(database, name, numbers)
  local rate, burst = numbers[2], numbers[3]
  if rate < 0 then return nil end
  if rate == 0 then return 0 end
  local tokens, kept = burst, call('HGET', BUCKETS, database .. ':' .. name)
  if kept then
    local had, at, old_rate, old_burst = string.match(kept, '^(%S+) (%d+) (%S+) (%d+)$')
    if tonumber(at) > NOW then -- this server's clock was set back: it is counted from now
      at = NOW_TEXT
      call('HSET', BUCKETS, database .. ':' .. name, table.concat({had, at, old_rate, old_burst}, ' '))
    end
    local passed = (NOW - at) / 1000
    if had + passed * old_rate < old_burst - 0.000001 then tokens = math.min(burst, had + passed * rate) end
  end
  if tokens > 0.999999 then return tokens, NOW end
  return tokens, math.ceil(NOW + (1 - tokens) * 1000 / rate)
end
-- How many more may run at once: 0 when it is full, and until supervisors have stated what they hold; nil: no such limit.
local function room_of(database, name, numbers)
  if numbers[1] < 0 then return nil end
  if not is_synced(database) then return 0 end
  return math.max(0, numbers[1] - call('SCARD', slots_key(database, name)))
end

-- The first limit of a list that lets nobody through, slots before tokens: its name, whether its slots are full, and the ms
-- at which it opens by itself (nil: when a slot is given back, or the rules change). Else nil, and the tokens found.
local function closed(database, list)
  local found = {}
  for i = 1, #list, 2 do
    if room_of(database, list[i], list[i + 1]) == 0 then return list[i], true, nil end
  end
  for i = 1, #list, 2 do
    local tokens, at = tokens_of(database, list[i], list[i + 1])
    if tokens and tokens <= 0.999999 then return list[i], false, at end
    found[i] = tokens
  end
  return nil, found
end

-- Nil: the job may run, and holds its slots and has its tokens. Else the limit that is closed, and the ms at which it opens
-- (nil: not by itself). All or nothing.
local function admit(reference, lane, rules)
  local database, list = database_of(lane), counted(reference, lane, rules)
  if not list[1] then return nil end
  local name, tokens, at = closed(database, list)
  if name then return name, at end
  for i = 1, #list, 2 do
    local numbers = list[i + 1]
    if numbers[1] >= 0 then call('SADD', slots_key(database, list[i]), reference) end
    if tokens[i] then
      local bucket = database .. ':' .. list[i]
      local rate, burst = numbers[2], numbers[3]
      call('HSET', BUCKETS, bucket, string.format('%.6f %d %.17g %d', tokens[i] - 1, NOW, rate, burst))
      call('ZADD', REFILLS, string.format('%.0f', math.ceil(NOW + (burst - tokens[i] + 1) * 1000 / rate) + 1), bucket)
    end
  end
  return nil
end

-- A lease that was not given by pick (stated anew, or older than the rules): it holds its slots, full or not.
local function hold_slots(reference, lane)
  local rules = rules_of(lane)
  if not rules or not rules.limited then return end
  local database, list = database_of(lane), counted(reference, lane, rules)
  for i = 1, #list, 2 do
    if list[i + 1][1] >= 0 then call('SADD', slots_key(database, list[i]), reference) end
  end
end
