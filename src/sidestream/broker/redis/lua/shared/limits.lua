-- Limits. slots:<db>:<limit> is the set of references that hold a slot. buckets: <db>:<limit> -> tokens, the ms at which
-- they were counted, and the rate and burst in force then. refills: <db>:<limit> -> the ms at which the bucket is full
-- again and is forgotten (reclaim.lua). A limit is named by its kind (LIMIT) and the queue, the action tag, or the tags of
-- its rule and value. Its numbers are {concurrency, rate, burst}; -1 means none.
local function slots_key(database, name) return P .. 'slots:' .. database .. ':' .. name end

-- The limits that a job counts against: name, numbers, ... of each.
local function counted(reference, lane, rules)
  local list, n = {}, 0
  local function add(name, numbers) list[n + 1], list[n + 2], n = name, numbers, n + 2 end
  if rules.everything then add(LIMIT.GLOBAL, rules.everything) end
  local queue = rules.by_queue[queue_of(lane)]
  if queue then add(LIMIT.QUEUE .. queue_of(lane), queue) end
  local action = action_of(reference)
  if rules.by_action[action] then add(LIMIT.ACTION .. hex(action), rules.by_action[action]) end
  local key = limit_of(reference)
  local by_key = key and rules.by_key[sub(key, 1, 4)]
  if by_key then add(LIMIT.KEY .. hex(key), by_key) end
  return list
end

-- The tokens in a bucket now, and the ms at which it has one (nil: never); nil without a rate. A bucket that has become
-- full by the numbers in force when it was counted is full, whether reclaim has forgotten it since or not.
local function tokens_of(database, name, numbers)
  local rate, burst = numbers[2], numbers[3]
  if rate < 0 then return nil end
  if rate == 0 then return 0 end
  local tokens, stored = burst, call('HGET', BUCKETS, database .. ':' .. name)
  if stored then
    local had, at, old_rate, old_burst = string.match(stored, '^(%S+) (%d+) (%S+) (%d+)$')
    if tonumber(at) > NOW then -- the server's clock was set back: count from now
      at = NOW_TEXT
      call('HSET', BUCKETS, database .. ':' .. name, table.concat({had, at, old_rate, old_burst}, ' '))
    end
    local passed = (NOW - at) / 1000
    if had + passed * old_rate < old_burst - 0.000001 then tokens = math.min(burst, had + passed * rate) end
  end
  if tokens > 0.999999 then return tokens, NOW end
  return tokens, math.ceil(NOW + (1 - tokens) * 1000 / rate)
end
-- The number of free slots; 0 also until the workers have reasserted the jobs that they hold; nil without a concurrency
-- limit.
local function room_of(database, name, numbers)
  if numbers[1] < 0 then return nil end
  if not is_synced(database) then return 0 end
  return math.max(0, numbers[1] - call('SCARD', slots_key(database, name)))
end

-- The first limit of a list that admits no job, concurrency before rate: its name, whether its slots are full, and the ms
-- at which it admits one again (nil: when a slot is freed or the rules change). Otherwise nil, and the tokens of each.
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

-- Take the slots and tokens of a job from all its limits and return nil; or take none and return the closed limit and the
-- ms at which it opens (nil: not by itself).
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

-- Take the slots of a job that runs already (reasserted, or leased before the rules changed), even if the limit is full.
local function hold_slots(reference, lane)
  local rules = rules_of(lane)
  if not rules or not rules.limited then return end
  local database, list = database_of(lane), counted(reference, lane, rules)
  for i = 1, #list, 2 do
    if list[i + 1][1] >= 0 then call('SADD', slots_key(database, list[i]), reference) end
  end
end
