-- Parked jobs: pools of those that a limit (l<database>:<limit>), a pause (p<database>:a<action> or x<action and group>) or an
-- unknown action (u<lane number>:<action>) keeps. A member: reference, priority, lane. parked: the pools of the first two
-- kinds that are not empty; unknown: those of the third. wakes: what to look at later -> ms.
local park, free_slots, sweep, work_off, mend_slots, wake_routed
do -- the rest is known in this file alone
function park(pool, reference, lane, priority, ready)
  put(pool, flow_of(reference, priority), {ready, parked_member(reference, lane, priority)})
  call('SADD', byte(pool) == 117 and UNROUTED_POOLS or PARKED, pool) -- u
end

-- Take up to `count` out of a pool, in its own fair order, into their lanes; answers how many.
local function wake(pool, count)
  local woken = 0
  while woken < count do
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
      woken = woken + 1
    end
    if not empty then charge(pool, flow, 1, 1) end
  end
  if is_empty(pool) then forget_pool(pool) end
  return woken
end

-- Wake as many as a limit has room for. Those that are woken and then do not use it (their queue is paused, nobody serves
-- it) must not keep the others: it is looked at again a second later.
local function wake_limit(pool, most)
  local database, name = sub(pool, 2, 17), sub(pool, 19)
  local rules = rules_of(database)
  if not rules then return 0 end
  local numbers
  if sub(name, 1, 1) == 'a' then
    numbers = rules.by_action[unhex(sub(name, 2))]
  else
    numbers = rules.by_key[unhex(sub(name, 2, 9))]
  end
  if not numbers then -- no limit any more: the rest follows in the next call
    local woken = wake(pool, most)
    if not is_empty(pool) then call('ZADD', TIMERS, NOW_TEXT, pool) end
    return woken
  end
  local slots, tokens, at = room_of(database, name, numbers), tokens_of(database, name, numbers)
  local full, room, opens = slots == 0, math.min(most, slots or most), nil
  if tokens then room = math.min(room, math.floor(tokens + 0.000001)) end
  local woken = room > 0 and wake(pool, room) or 0
  if is_empty(pool) then return woken end
  if room > 0 then
    opens = NOW + 1000
    if numbers[2] > 0 then opens = math.max(NOW + 1, math.min(opens, math.ceil(NOW + 1000 / numbers[2]))) end
  elseif not full then
    opens = at
  end
  if opens then call('ZADD', TIMERS, digits(opens), pool) else call('ZREM', TIMERS, pool) end
  return woken
end

-- A lease ended: its slots are free, and for each the next one that waits for it is woken (only as many as were freed: others
-- are on their way already). Answers whether a limit may let others in now.
function free_slots(reference, lane)
  local rules = rules_of(lane)
  if not rules or not rules.limited then return false end
  local database, list, freed = database_of(lane), counted(reference, lane, rules), false
  for i = 1, #list, 2 do
    local name = list[i]
    if list[i + 1][1] >= 0 and call('SREM', slots_key(database, name), reference) == 1 then
      freed = true
      local pool = 'l' .. database .. ':' .. name
      local kind = sub(name, 1, 1)
      if kind == 'g' then
        all_made_ready(database)
      elseif kind == 'q' then
        made_ready(lane)
      elseif not is_empty(pool) then
        wake_limit(pool, 1)
      end
    end
  end
  return freed
end

-- A group goes on: its flow_jobs take their flows again.
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
-- After a change of rules every parked pool of the database is looked at, 200 a call.
function sweep(task)
  local field = 'sweep:' .. sub(task, 2)
  local found = call('SSCAN', PARKED, call('HGET', META, field) or '0', 'COUNT', 200)
  for _, pool in ipairs(found[2]) do
    if sub(pool, 2, 17) == sub(task, 2) then call('ZADD', TIMERS, 'LT', NOW_TEXT, pool) end
  end
  if found[1] == '0' then
    call('HDEL', META, field)
    call('ZREM', TIMERS, task)
  else
    call('HSET', META, field, found[1])
  end
end
-- Do what is due in wakes, at most 100 jobs; answers how many were woken.
function work_off()
  local woken = 0
  for _, task in ipairs(call('ZRANGE', TIMERS, '-inf', NOW_TEXT, 'BYSCORE', 'LIMIT', 0, 20)) do
    local kind, room = sub(task, 1, 1), 100 - woken
    if kind == 's' then
      sweep(task)
    elseif kind == 'g' then
      resume_group(sub(task, 2, 17), sub(task, 19))
      call('ZREM', TIMERS, task)
    elseif room > 0 and kind == 'l' then
      woken = woken + wake_limit(task, room)
      if is_empty(task) then call('ZREM', TIMERS, task) end
    elseif room > 0 and kind == 'p' then
      local rules, what = rules_of(sub(task, 2, 17)), unhex(sub(task, 20))
      local set = rules and (sub(task, 19, 19) == 'a' and rules.actions or rules.pairs)
      if not set or set[what] then
        call('ZREM', TIMERS, task) -- paused, maybe again
      else
        woken = woken + wake(task, room)
      end
    end
  end
  return woken
end

-- A slot whose holder has no lease any more (its key was lost, by whatever hand) is free; a part of them is looked at a call.
local function mend(database, name, most)
  local slots, lost = slots_key(database, name), {}
  local holders = call('SRANDMEMBER', slots, most)
  local leases = holders[1] and call('HMGET', LEASES, unpack(holders)) or {}
  for i = 1, #holders do
    if not leases[i] then lost[#lost + 1] = holders[i] end
  end
  if lost[1] then call('SREM', slots, unpack(lost)) end
  return lost[1] ~= nil
end
function mend_slots(lanes)
  local limited = false
  for _, lane in ipairs(lanes) do
    local rules = rules_of(lane)
    if rules and rules.limited then
      limited = true
      local database, queue = database_of(lane), queue_of(lane)
      if rules.everything and mend(database, 'g', 100) then all_made_ready(database) end
      if rules.by_queue[queue] and mend(database, 'q' .. queue, 100) then made_ready(lane) end
    end
  end
  if not limited then return end
  local found = call('SSCAN', PARKED, call('HGET', META, 'mend') or '0', 'COUNT', 100)
  call('HSET', META, 'mend', found[1])
  local mended = false
  for _, pool in ipairs(found[2]) do
    if byte(pool) == 108 and mend(sub(pool, 2, 17), sub(pool, 19), 20) then -- l
      call('ZADD', TIMERS, NOW_TEXT, pool)
      mended = true
    end
  end
  if mended then work_off() end
end
-- Jobs whose action nobody knew who met them go on in these lanes when this worker knows it. Answers how many.
function wake_routed(worker, lanes)
  if call('EXISTS', UNROUTED_POOLS) == 0 then return 0 end
  local mine, known, woken = {}, actions_of(worker), 0
  for _, lane in ipairs(lanes) do mine[lane_number(lane)] = true end
  for _, pool in ipairs(call('SMEMBERS', UNROUTED_POOLS)) do
    local number, action = string.match(pool, '^u(%d+):(%x+)$')
    if mine[number] and (not known or known[unhex(action)]) then woken = woken + wake(pool, 100) end
  end
  return woken
end
end
