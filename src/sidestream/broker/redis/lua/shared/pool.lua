-- A pool holds jobs that are served fairly by group: the ready jobs of a lane (POOL.READY .. lane number), or the jobs
-- that a limit, a pause or an unknown action parks (parked.lua). A flow is a priority (one digit) and a group (8 bytes).
-- schedule:<pool> scores each flow that is served by priority x 2^40 + the virtual time of its group (stride scheduling:
-- each job adds 1/weight). flow:<pool>:<flow> scores the jobs of a flow by their first-ready time in ms.
-- If a flow has one job and the pool has other flows, singletons:<pool> holds "<first-ready time> <member>" instead, which
-- takes a third of the memory (10,000 groups of one job). A second job moves both to flow:<pool>:<flow>; a job is never
-- in both.
local schedule_key, flow_key, flow_of, schedule_flow, put, first_of, ready_of, is_empty, forget_pool, remove, next_flow,
  pop, charge
do
local LEVEL = 1099511627776 -- 2^40
function schedule_key(pool) return P .. 'schedule:' .. pool end
function flow_key(pool, flow) return P .. 'flow:' .. pool .. ':' .. flow end
local function singletons_key(pool) return P .. 'singletons:' .. pool end
function flow_of(reference, priority) return priority .. group_of(reference) end

-- Add a flow to the schedule, as the next one of its priority.
function schedule_flow(pool, flow)
  local schedule, floor = schedule_key(pool), byte(flow, 1) - 48
  local first = call('ZRANGE', schedule, floor * LEVEL, '(' .. string.format('%.0f', (floor + 1) * LEVEL), 'BYSCORE',
    'LIMIT', 0, 1, 'WITHSCORES')[2]
  if first and call('ZSCORE', schedule, flow) then return end
  call('ZADD', schedule, first or string.format('%.0f', floor * LEVEL), flow)
end

-- The member of a singleton flow and its first-ready time (text); nil if the flow is empty or has a sorted set.
local function single(pool, flow)
  local value = call('HGET', singletons_key(pool), flow)
  if not value then return nil end
  local ready, member = string.match(value, '^(%d+) (.*)$')
  return member or value, ready or '0' -- a foreign value; whoever takes it puts it into quarantine
end

-- Add jobs (score, member, ...) to a flow. A flow that was empty joins the schedule; the flow of a paused group leaves
-- the schedule again when it is met (pick.lua).
function put(pool, flow, words)
  local jobs = flow_key(pool, flow)
  if call('EXISTS', jobs) == 0 then
    local member, ready = single(pool, flow)
    if member then
      call('HDEL', singletons_key(pool), flow)
      call('ZADD', jobs, ready, member)
      -- Not the flow of a paused group: while it is in the schedule, it may take the turn of aged jobs.
      local rules = kind_of(pool) == POOL.READY and rules_of(hex(sub(words[2], 2, 9)))
      if not rules or not rules.groups[sub(flow, 2)] then schedule_flow(pool, flow) end
    elseif not words[3] and call('EXISTS', schedule_key(pool)) == 1 then
      call('HSET', singletons_key(pool), flow, words[1] .. ' ' .. words[2])
      return schedule_flow(pool, flow)
    else
      schedule_flow(pool, flow)
    end
  end
  call('ZADD', jobs, unpack(words))
end

-- The first member of a flow and its first-ready time (text), or nil.
function first_of(pool, flow)
  local found = call('ZRANGE', flow_key(pool, flow), 0, 0, 'WITHSCORES')
  if found[1] then return found[1], found[2] end
  return single(pool, flow)
end

-- The first-ready time (text) of a member, or nil if it is not in the flow.
function ready_of(pool, flow, member)
  local ready = call('ZSCORE', flow_key(pool, flow), member)
  if ready then return ready end
  local only, only_ready = single(pool, flow)
  return only == member and only_ready or nil
end

function is_empty(pool) return call('EXISTS', schedule_key(pool)) == 0 end
-- A parked pool is empty: remove its name and its timer.
function forget_pool(pool)
  call('SREM', kind_of(pool) == POOL.UNROUTED and UNROUTED_SET or PARKED, pool)
  call('ZREM', TIMERS, pool)
end

-- Remove one member; returns how many were removed (1 or 0).
function remove(pool, flow, member)
  local jobs = flow_key(pool, flow)
  local gone = call('ZREM', jobs, member)
  if gone == 0 and single(pool, flow) == member then gone = call('HDEL', singletons_key(pool), flow) end
  if gone == 1 and call('EXISTS', jobs) == 0 then
    call('ZREM', schedule_key(pool), flow)
    if kind_of(pool) ~= POOL.READY and is_empty(pool) then forget_pool(pool) end
  end
  return gone
end

-- The flow that is served next: the one with the least virtual time in the most urgent priority, or nil. Every second
-- turn goes to a less urgent priority whose next job has been ready for more than `aging` ms; these priorities alternate.
function next_flow(pool, aging)
  local schedule = schedule_key(pool)
  local first = call('ZRANGE', schedule, 0, 0)[1]
  if not first or not aging then return first end
  local last = call('ZRANGE', schedule, -1, -1)[1]
  if byte(last, 1) == byte(first, 1) then return first end
  -- Two digits: 1 if the last turn was an aged one, and the priority of the last aged turn.
  local last_turn, aged, lowest = call('HGET', LANE_CLOCK, 'a' .. pool) or '00', nil, nil
  local level, before = byte(first, 1) - 47, byte(last_turn, 2) - 48
  while level <= 9 and not aged do
    local flow = call('ZRANGE', schedule, string.format('%.0f', level * LEVEL), '+inf', 'BYSCORE', 'LIMIT', 0, 1)[1]
    if not flow then break end
    level = byte(flow, 1) - 47
    local _, ready = first_of(pool, flow)
    if ready and NOW - ready > aging then
      lowest = lowest or flow
      if level - 1 > before then aged = flow end
    end
  end
  aged = aged or lowest
  if not aged then return first end
  if sub(last_turn, 1, 1) == '1' then
    call('HSET', LANE_CLOCK, 'a' .. pool, '0' .. before)
    return first
  end
  call('HSET', LANE_CLOCK, 'a' .. pool, '1' .. sub(aged, 1, 1))
  return aged
end

-- Take up to `count` jobs from a flow. Returns member, score, ... and whether the flow is empty now.
function pop(pool, flow, count)
  local jobs = flow_key(pool, flow)
  local found = call('ZPOPMIN', jobs, count)
  if not found[1] then
    found = {single(pool, flow)}
    call('HDEL', singletons_key(pool), flow)
  end
  local empty = #found < 2 * count or call('EXISTS', jobs) == 0
  if empty then call('ZREM', schedule_key(pool), flow) end
  return found, empty
end
-- Advance the virtual time of a group of this weight by `count` jobs.
function charge(pool, flow, count, weight)
  call('ZINCRBY', schedule_key(pool), string.format('%.6f', count / weight), flow)
end
end
