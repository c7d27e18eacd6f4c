-- Take up to `free` references out of these lanes, and `prefetch` more that have neither key nor limit (up to the first that
-- has one): lanes in turn by weight, the flows of a lane as pool.lua serves them. What may not run is parked, at most 100 a call.
-- Answers references, their ready times (text), lanes, priorities (text).
local opens_at -- of the last pick: the ms at which a full limit lets a lane in again, or nil
local met_unknown -- whether the last pick parked a job whose action its worker does not know
local MOST_PAUSED = 1000 -- most flows of paused groups that leave their rings in a call

local function opens(at)
  if at and (not opens_at or at < opens_at) then opens_at = at end
end

-- The lanes that are looked at: their queue not paused, their rules known. A full limit shuts one when its job is met.
local function served(lanes)
  local open = {}
  for _, lane in ipairs(lanes) do
    local rules, database = rules_of(lane), database_of(lane)
    if rules and not rules.queues[queue_of(lane)] then
      open[#open + 1] = {lane = lane, rules = rules, database = database, pool = ready_pool(lane)}
    end
  end
  return open
end

local function read_lane_clock(open)
  local names = {' now'}
  open.marks = {}
  for i, one in ipairs(open) do names[i + 1] = one.lane end
  local times = call('HMGET', LANE_CLOCK, unpack(names))
  open.now = tonumber(times[1] or 0)
  for i, one in ipairs(open) do one.time = tonumber(times[i + 1] or 0) end
end
-- The lane whose turn it is among several: that with the smallest virtual time; one that was idle saves up nothing.
local function turn_of(open)
  if not open[2] then return 1 end
  local which, least
  for i, one in ipairs(open) do
    local time = math.max(one.time, open.now)
    if not least or time < least then which, least = i, time end
  end
  return which
end
local function took(open, one, count)
  open.now = math.max(one.time or 0, open.now)
  open.marks[one.lane] = string.format('%.6f', open.now + count / (one.rules.queue_weights[queue_of(one.lane)] or 1))
  one.time = tonumber(open.marks[one.lane])
  open.marks[' now'] = string.format('%.6f', open.now)
end

local function write_lane_clock(open)
  local words = {}
  for name, mark in pairs(open.marks or {}) do
    words[#words + 1] = name
    words[#words + 1] = mark
  end
  if words[1] then call('HSET', LANE_CLOCK, unpack(words)) end
end

-- The flow that a lane serves next; paused groups' flows leave the schedule when met, the rest of very many in the next call.
local function flow_in(one)
  while true do
    local flow = next_flow(one.pool, one.rules.aging)
    if not flow or not one.rules.grouped or not one.rules.groups[sub(flow, 2)] then return flow end
    call('ZREM', schedule_key(one.pool), flow)
    one.left = (one.left or 0) + 1
    if one.left >= MOST_PAUSED then
      opens(NOW + 1)
      return nil
    end
  end
end

local function pick(lanes, free, prefetch, worker)
  local want, count, parked = free + prefetch, 0, 0
  local picked, readies, homes, levels = {}, {}, {}, {}
  local open, known = served(lanes), actions_of(worker)
  -- How many are taken at once beyond the free children: what a keyed one among them sends back is no more than was taken.
  local ahead = 16
  opens_at, met_unknown = nil, false
  if open[2] then read_lane_clock(open) end

  -- What becomes of one member: true: it is taken; 'stop': nothing more is taken; 'shut': its lane is full; nil: it is gone.
  local function look(one, reference, ready, priority)
    if not valid(reference) then
      quarantine(reference)
      return nil
    end
    if count >= free and sub(reference, -8) ~= NO_KEY then return 'stop' end
    local action, rules = action_of(reference), one.rules
    local pool
    if known and not known[action] then
      pool, met_unknown = 'u' .. lane_number(one.lane) .. ':' .. hex(action), true
      unknown_in[one.lane] = true
      made_ready(one.lane) -- somebody else may know it
    elseif rules.picky then
      if rules.actions[action] then
        pool = 'p' .. one.database .. ':a' .. hex(action)
      elseif rules.pairs[action .. group_of(reference)] then
        pool = 'p' .. one.database .. ':x' .. hex(action .. group_of(reference))
      elseif rules.limited then
        if count >= free and counted(reference, one.lane, rules)[1] then return 'stop' end
        local name, at = admit(reference, one.lane, rules)
        local kind = name and sub(name, 1, 1)
        if kind == 'g' or kind == 'q' then
          opens(at)
          return 'shut'
        elseif name then
          pool = 'l' .. one.database .. ':' .. name
          if at then call('ZADD', TIMERS, 'LT', digits(at), pool) end
        end
      end
    end
    if pool then
      park(pool, reference, one.lane, priority, ready)
      parked = parked + 1
      return nil
    end
    count = count + 1
    picked[count], readies[count], homes[count], levels[count] = reference, ready, one.lane, priority
    return true
  end

  while count < want and parked < 100 and open[1] do
    local which = turn_of(open)
    local one = open[which]
    local flow = flow_in(one)
    if not flow then
      table.remove(open, which)
    else
      local priority, run = sub(flow, 1, 1), 1
      local alone = not open[2] and not one.rules.picky and call('ZCARD', schedule_key(one.pool)) == 1
      if alone then run = count < free and free - count or math.min(want - count, ahead) end
      if alone and count >= free then
        -- A line of keyed jobs is not taken out to be put back: its first one ends it.
        local head = first_of(one.pool, flow)
        if head and valid(head) and keyed(head) then break end
        ahead = 2 * ahead
      end
      local found, empty = pop(one.pool, flow, run)
      local taken, verdict = 0, nil
      for i = 1, #found, 2 do
        verdict = look(one, found[i], found[i + 1], priority)
        if verdict == true then
          taken = taken + 1
        elseif verdict then
          local back = {}
          for at = i, #found, 2 do
            back[#back + 1] = found[at + 1]
            back[#back + 1] = found[at]
          end
          put(one.pool, flow, back)
          empty = false
          break
        end
      end
      if taken > 0 then
        if not alone and not empty then
          charge(one.pool, flow, taken, one.rules.group_weights[sub(flow, 2)] or 1)
        end
        if open[2] then took(open, one, taken) end
      end
      if verdict == 'stop' then break end
      if verdict == 'shut' then table.remove(open, which) end
    end
  end
  write_lane_clock(open)
  if parked >= 100 then opens(NOW + 1) end
  return picked, readies, homes, levels
end
