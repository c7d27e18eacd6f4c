-- Parked jobs: the pools of jobs that wait for a limit (POOL.LIMITED, database, limit), a pause (POOL.PAUSED, database,
-- kind, tags) or a worker that knows their action (POOL.UNROUTED, lane number, action). Members: reference, priority, lane.
-- parked and unrouted: the names of these pools that are not empty. timers: pool or task -> the ms at which it is due.
local park, free_slots, run_timers, repair_slots, unpark_routed
do
-- The parts of the name of a limited or paused pool or of a group's task: kind, database (16 hex digits), ':', the rest.
local function database_in(name) return sub(name, 2, 17) end
local function rest_of(name) return sub(name, 19) end

function park(pool, reference, lane, priority, ready)
  put(pool, flow_of(reference, priority), {ready, parked_member(reference, lane, priority)})
  call('SADD', kind_of(pool) == POOL.UNROUTED and UNROUTED_SET or PARKED, pool)
end

-- Move up to `count` jobs of a pool, in its fair order, to the ready pools of their lanes. Returns how many.
local function unpark(pool, count)
  local unparked = 0
  while unparked < count do
    local flow = next_flow(pool)
    if not flow then break end
    local found, empty = pop(pool, flow, 1)
    local member, ready = found[1], found[2]
    if member then
      local size = SIZES[byte(member, 1)]
      local reference = size and sub(member, 1, size) or member
      if valid(reference) then
        place(reference, sub(member, size + 2), sub(member, size + 1, size + 1), tonumber(ready), 0)
      else
        quarantine(member)
      end
      unparked = unparked + 1
    end
    if not empty then charge(pool, flow, 1, 1) end
  end
  if is_empty(pool) then forget_pool(pool) end
  return unparked
end

-- Unpark as many jobs as a limit admits. Jobs that then cannot use it (their queue is paused or has no worker) must not
-- keep back the others, so the pool is due again a second later.
local function unpark_limited(pool, most)
  local database, name = database_in(pool), rest_of(pool)
  local rules = rules_of(database)
  if not rules then return 0 end
  local numbers
  if kind_of(name) == LIMIT.ACTION then
    numbers = rules.by_action[unhex(sub(name, 2))]
  else
    numbers = rules.by_key[unhex(sub(name, 2, 9))]
  end
  if not numbers then -- no longer limited: the rest follows in the next call
    local unparked = unpark(pool, most)
    if not is_empty(pool) then call('ZADD', TIMERS, NOW_TEXT, pool) end
    return unparked
  end
  local slots, tokens, at = room_of(database, name, numbers), tokens_of(database, name, numbers)
  local full, room, opens = slots == 0, math.min(most, slots or most), nil
  if tokens then room = math.min(room, math.floor(tokens + 0.000001)) end
  local unparked = room > 0 and unpark(pool, room) or 0
  if is_empty(pool) then return unparked end
  if room > 0 then
    opens = NOW + 1000
    if numbers[2] > 0 then opens = math.max(NOW + 1, math.min(opens, math.ceil(NOW + 1000 / numbers[2]))) end
  elseif not full then
    opens = at
  end
  if opens then call('ZADD', TIMERS, digits(opens), pool) else call('ZREM', TIMERS, pool) end
  return unparked
end

-- A lease ended: free its slots, and for each unpark one job that waits for it (no more: others have been unparked for
-- the slots freed before). Returns whether a limit may admit other jobs now.
function free_slots(reference, lane)
  local rules = rules_of(lane)
  if not rules or not rules.limited then return false end
  local database, list, freed = database_of(lane), counted(reference, lane, rules), false
  for i = 1, #list, 2 do
    local name = list[i]
    if list[i + 1][1] >= 0 and call('SREM', slots_key(database, name), reference) == 1 then
      freed = true
      local pool, kind = limited_pool(database, name), kind_of(name)
      if kind == LIMIT.GLOBAL then
        all_made_ready(database)
      elseif kind == LIMIT.QUEUE then
        made_ready(lane)
      elseif not is_empty(pool) then
        unpark_limited(pool, 1)
      end
    end
  end
  return freed
end

-- A group is no longer paused: its flows join the schedules again.
local function resume_group(database, group)
  for _, lane in ipairs(call('SMEMBERS', P .. 'lanes:' .. database)) do
    for priority = 0, 9 do
      local pool, flow = ready_pool(lane), priority .. group
      if first_of(pool, flow) then
        schedule_flow(pool, flow)
        made_ready(lane)
      end
    end
  end
end
-- After a change of rules, every parked pool of the database becomes due, 200 per call.
local function sweep_parked(task)
  local field = 'sweep:' .. sub(task, 2)
  local found = call('SSCAN', PARKED, call('HGET', META, field) or '0', 'COUNT', 200)
  for _, pool in ipairs(found[2]) do
    if database_in(pool) == sub(task, 2) then call('ZADD', TIMERS, 'LT', NOW_TEXT, pool) end
  end
  if found[1] == '0' then
    call('HDEL', META, field)
    call('ZREM', TIMERS, task)
  else
    call('HSET', META, field, found[1])
  end
end
-- Run the timers that are due, for at most 100 jobs. Returns how many jobs were unparked.
function run_timers()
  local unparked = 0
  for _, task in ipairs(call('ZRANGE', TIMERS, '-inf', NOW_TEXT, 'BYSCORE', 'LIMIT', 0, 20)) do
    local kind, room = kind_of(task), 100 - unparked
    if kind == TASK.SWEEP then
      sweep_parked(task)
    elseif kind == TASK.RESUME_GROUP then
      resume_group(database_in(task), rest_of(task))
      call('ZREM', TIMERS, task)
    elseif room > 0 and kind == POOL.LIMITED then
      unparked = unparked + unpark_limited(task, room)
      if is_empty(task) then call('ZREM', TIMERS, task) end
    elseif room > 0 and kind == POOL.PAUSED then
      local rules, name = rules_of(database_in(task)), rest_of(task)
      local paused = rules and (kind_of(name) == PAUSE.ACTION and rules.actions or rules.pairs)
      if not paused or paused[unhex(sub(name, 2))] then
        call('ZREM', TIMERS, task) -- still paused, or again
      else
        unparked = unparked + unpark(task, room)
      end
    end
  end
  return unparked
end

-- Free the slots whose holders have no lease any more because somebody removed our keys; each call checks some of them.
local function repair(database, name, most)
  local slots, lost = slots_key(database, name), {}
  local holders = call('SRANDMEMBER', slots, most)
  local leases = holders[1] and call('HMGET', LEASES, unpack(holders)) or {}
  for i = 1, #holders do
    if not leases[i] then lost[#lost + 1] = holders[i] end
  end
  if lost[1] then call('SREM', slots, unpack(lost)) end
  return lost[1] ~= nil
end
function repair_slots(lanes)
  local limited = false
  for _, lane in ipairs(lanes) do
    local rules = rules_of(lane)
    if rules and rules.limited then
      limited = true
      local database, queue = database_of(lane), queue_of(lane)
      if rules.everything and repair(database, LIMIT.GLOBAL, 100) then all_made_ready(database) end
      if rules.by_queue[queue] and repair(database, LIMIT.QUEUE .. queue, 100) then made_ready(lane) end
    end
  end
  if not limited then return end
  local found = call('SSCAN', PARKED, call('HGET', META, 'repair') or '0', 'COUNT', 100)
  call('HSET', META, 'repair', found[1])
  local repaired = false
  for _, pool in ipairs(found[2]) do
    if kind_of(pool) == POOL.LIMITED and repair(database_in(pool), rest_of(pool), 20) then
      call('ZADD', TIMERS, NOW_TEXT, pool)
      repaired = true
    end
  end
  if repaired then run_timers() end
end
-- Move the unrouted jobs of these lanes whose actions this worker knows to their ready pools. Returns how many.
function unpark_routed(worker, lanes)
  if call('EXISTS', UNROUTED_SET) == 0 then return 0 end
  local served_numbers, known, unparked = {}, actions_of(worker), 0
  for _, lane in ipairs(lanes) do served_numbers[lane_number(lane)] = true end
  for _, pool in ipairs(call('SMEMBERS', UNROUTED_SET)) do
    local number, action = string.match(sub(pool, 2), '^(%d+):(%x+)$')
    if served_numbers[number] and (not known or known[unhex(action)]) then unparked = unparked + unpark(pool, 100) end
  end
  return unparked
end
end
