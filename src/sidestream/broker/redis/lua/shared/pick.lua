-- Take up to `free` references from these lanes, then `prefetch` more up to the first that has a key or a limit: lanes in
-- turn by weight, the flows of a lane as pool.lua orders them. Jobs that may not run are parked, at most 100 per call.
-- Returns references, their ready times (text), lanes and priorities (text).
local opens_at -- of the last pick: the ms at which a full limit admits jobs of a lane again, or nil
local met_unrouted -- whether the last pick parked a job whose action its worker does not know

-- The lanes that pick considers: their rules are known and their queue is not paused.
local function served(lanes)
  local open = {}
  for _, lane in ipairs(lanes) do
    local rules, database = rules_of(lane), database_of(lane)
    if rules and not rules.queues[queue_of(lane)] then
      open[#open + 1] = {name = lane, rules = rules, database = database, pool = ready_pool(lane)}
    end
  end
  return open
end

local function read_lane_clock(open)
  local names = {' now'}
  open.updates = {}
  for i, lane in ipairs(open) do names[i + 1] = lane.name end
  local times = call('HMGET', LANE_CLOCK, unpack(names))
  open.now = tonumber(times[1] or 0)
  for i, lane in ipairs(open) do lane.time = tonumber(times[i + 1] or 0) end
end
-- The lane whose turn it is: the lane with the least virtual time. A lane that had no jobs gains no advantage.
local function next_lane(open)
  if not open[2] then return 1 end
  local which, least
  for i, lane in ipairs(open) do
    local time = math.max(lane.time, open.now)
    if not least or time < least then which, least = i, time end
  end
  return which
end
local function charge_lane(open, lane, count)
  open.now = math.max(lane.time or 0, open.now)
  local weight = lane.rules.queue_weights[queue_of(lane.name)] or 1
  open.updates[lane.name] = string.format('%.6f', open.now + count / weight)
  lane.time = tonumber(open.updates[lane.name])
  open.updates[' now'] = string.format('%.6f', open.now)
end

local function write_lane_clock(open)
  local words = {}
  for name, time in pairs(open.updates or {}) do
    words[#words + 1] = name
    words[#words + 1] = time
  end
  if words[1] then call('HSET', LANE_CLOCK, unpack(words)) end
end

local pick
do
local MOST_PAUSED = 1000 -- flows of paused groups that leave the schedules in one call

local function opens(at)
  if at and (not opens_at or at < opens_at) then opens_at = at end
end

-- The flow that a lane serves next. Flows of paused groups leave the schedule when they are met.
local function flow_in(lane)
  while true do
    local flow = next_flow(lane.pool, lane.rules.aging)
    if not flow or not lane.rules.grouped or not lane.rules.groups[sub(flow, 2)] then return flow end
    call('ZREM', schedule_key(lane.pool), flow)
    lane.left = (lane.left or 0) + 1
    if lane.left >= MOST_PAUSED then
      opens(NOW + 1)
      return nil
    end
  end
end

function pick(lanes, free, prefetch, worker)
  local want, count, parked = free + prefetch, 0, 0
  local picked, ready_times, picked_lanes, priorities = {}, {}, {}, {}
  local open, known = served(lanes), actions_of(worker)
  -- How many jobs beyond the free children are taken at once; a keyed job among them sends the jobs after it back.
  local ahead = 16
  opens_at, met_unrouted = nil, false
  if open[2] then read_lane_clock(open) end

  -- Decide about one job: 'take'; 'stop': take no more jobs; 'full': its lane is full; nil: it is parked or foreign.
  local function decide(lane, reference, ready, priority)
    if not valid(reference) then
      quarantine(reference)
      return nil
    end
    if count >= free and sub(reference, -8) ~= NO_KEY then return 'stop' end
    local action, rules = action_of(reference), lane.rules
    local pool
    if known and not known[action] then
      pool, met_unrouted = unrouted_pool(lane.name, hex(action)), true
      unrouted_lanes[lane.name] = true
      made_ready(lane.name) -- another worker may know it
    elseif rules.per_job then
      if rules.actions[action] then
        pool = paused_pool(lane.database, PAUSE.ACTION, hex(action))
      elseif rules.pairs[action .. group_of(reference)] then
        pool = paused_pool(lane.database, PAUSE.GROUP_ACTION, hex(action .. group_of(reference)))
      elseif rules.limited then
        if count >= free and counted(reference, lane.name, rules)[1] then return 'stop' end
        local name, at = admit(reference, lane.name, rules)
        local kind = name and kind_of(name)
        if kind == LIMIT.GLOBAL or kind == LIMIT.QUEUE then
          opens(at)
          return 'full'
        elseif name then
          pool = limited_pool(lane.database, name)
          if at then call('ZADD', TIMERS, 'LT', digits(at), pool) end
        end
      end
    end
    if pool then
      park(pool, reference, lane.name, priority, ready)
      parked = parked + 1
      return nil
    end
    count = count + 1
    picked[count], ready_times[count], picked_lanes[count], priorities[count] = reference, ready, lane.name, priority
    return 'take'
  end

  while count < want and parked < 100 and open[1] do
    local which = next_lane(open)
    local lane = open[which]
    local flow = flow_in(lane)
    if not flow then
      table.remove(open, which)
    else
      local priority, run = sub(flow, 1, 1), 1
      local alone = not open[2] and not lane.rules.per_job and call('ZCARD', schedule_key(lane.pool)) == 1
      if alone then run = count < free and free - count or math.min(want - count, ahead) end
      if alone and count >= free then
        -- Do not take keyed jobs out only to put them back: the first of them ends the pick.
        local head = first_of(lane.pool, flow)
        if head and valid(head) and keyed(head) then break end
        ahead = 2 * ahead
      end
      local found, empty = pop(lane.pool, flow, run)
      local taken, verdict = 0, nil
      for i = 1, #found, 2 do
        verdict = decide(lane, found[i], found[i + 1], priority)
        if verdict == 'take' then
          taken = taken + 1
        elseif verdict then
          local back = {}
          for at = i, #found, 2 do
            back[#back + 1] = found[at + 1]
            back[#back + 1] = found[at]
          end
          put(lane.pool, flow, back)
          empty = false
          break
        end
      end
      if taken > 0 then
        if not alone and not empty then
          charge(lane.pool, flow, taken, lane.rules.group_weights[sub(flow, 2)] or 1)
        end
        if open[2] then charge_lane(open, lane, taken) end
      end
      if verdict == 'stop' then break end
      if verdict == 'full' then table.remove(open, which) end
    end
  end
  write_lane_clock(open)
  if parked >= 100 then opens(NOW + 1) end
  return picked, ready_times, picked_lanes, priorities
end
end
