-- Limits: slots:<database>:<limit> is the set of references that hold one; buckets: <database>:<limit> -> tokens and the ms
-- at which they were counted; full: the same -> the ms at which it is full again and may be forgotten (reclaim.lua). A limit is named g (everything), q<queue>, a<action tag> or k<rule and value tags>; its
-- numbers are {concurrency, rate, burst}, -1: none.
local function slots_key(database, name) return P .. 'slots:' .. database .. ':' .. name end

-- What a job counts against: name, numbers, ... of each.
local function counted(reference, lane, rules)
  local list, key = {}, limit_of(reference)
  local function add(name, numbers)
    if numbers then
      list[#list + 1] = name
      list[#list + 1] = numbers
    end
  end
  add('g', rules.everything)
  add('q' .. queue_of(lane), rules.by_queue[queue_of(lane)])
  add('a' .. hex(action_of(reference)), rules.by_action[action_of(reference)])
  if key then add('k' .. hex(key), rules.by_key[sub(key, 1, 4)]) end
  return list
end

-- Tokens in a bucket now, and the ms at which there is one (nil: never). Without a rate: nil.
local function tokens_of(database, name, numbers)
  local rate, burst = numbers[2], numbers[3]
  if rate < 0 then return nil end
  if rate == 0 then return 0 end
  local tokens, kept = burst, call('HGET', BUCKETS, database .. ':' .. name)
  if kept then
    local had, at = string.match(kept, '^(%S+) (%d+)$')
    tokens = math.min(burst, had + math.max(0, NOW - at) * rate / 1000)
  end
  if tokens > 0.999999 then return tokens, NOW end
  return tokens, math.ceil(NOW + (1 - tokens) * 1000 / rate)
end

local function no_slot(database, name, most)
  return most >= 0 and (not is_built(database) or call('SCARD', slots_key(database, name)) >= most)
end

-- Nil: the job may run, and holds its slots and has its tokens. Else which limit is full, and the ms at which it opens
-- (nil: when a slot is given back, or the rules change). All or nothing. Before a database is built, supervisors are still
-- stating what they hold: no slot of it is given.
local function admit(reference, lane, rules)
  local database, list, buckets, full = database_of(lane), counted(reference, lane, rules), {}, {}
  for i = 1, #list, 2 do
    if no_slot(database, list[i], list[i + 1][1]) then return list[i], nil end
  end
  for i = 1, #list, 2 do
    local tokens, at = tokens_of(database, list[i], list[i + 1])
    if tokens then
      if tokens <= 0.999999 then return list[i], at end
      local bucket, numbers = database .. ':' .. list[i], list[i + 1]
      buckets[#buckets + 1] = bucket
      buckets[#buckets + 1] = string.format('%.6f %d', tokens - 1, NOW)
      full[#full + 1] = string.format('%.0f', NOW + (numbers[3] - tokens + 1) * 1000 / numbers[2])
      full[#full + 1] = bucket
    end
  end
  for i = 1, #list, 2 do
    if list[i + 1][1] >= 0 then call('SADD', slots_key(database, list[i]), reference) end
  end
  if buckets[1] then
    call('HSET', BUCKETS, unpack(buckets))
    call('ZADD', FULL, unpack(full))
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
