-- A pool: where jobs wait that may be taken in any order that is fair. Ready jobs of a lane ('r<lane number>'), and those
-- that a limit, a pause or an unknown action keeps (parked.lua). schedule:<pool>: a flow for each jobs that is served, scored
-- priority x 2^40 + its group's virtual time; flow:<pool>:<flow>: members scored by their first-ready time in ms. The only
-- member of a flow beside others needs no jobs: singletons:<pool> holds "<first-ready time> <member>" (10,000 groups of one job: a
-- third of the memory). It moves into flow:<pool>:<flow> when a second one comes: a flow has one or the other, never both.
-- A flow: the priority as a digit, then the group's 8 bytes. Stride scheduling: a group's time grows by 1/weight a job.
local schedule_key, flow_key, flow_of, schedule_flow, put, first_of, ready_of, is_empty, forget_pool, remove, next_flow,
  pop, charge
do -- the rest is known in this file alone
local LEVEL = 1099511627776 -- 2^40
function schedule_key(pool) return P .. 'schedule:' .. pool end
function flow_key(pool, flow) return P .. 'flow:' .. pool .. ':' .. flow end
local function singletons_key(pool) return P .. 'singletons:' .. pool end
function flow_of(reference, priority) return priority .. group_of(reference) end

-- A jobs was filled: its flow joins the schedule, served as the next of its priority.
function schedule_flow(pool, flow)
  local schedule, floor = schedule_key(pool), byte(flow, 1) - 48
  local first = call('ZRANGE', schedule, floor * LEVEL, '(' .. string.format('%.0f', (floor + 1) * LEVEL), 'BYSCORE',
    'LIMIT', 0, 1, 'WITHSCORES')[2]
  if first and call('ZSCORE', schedule, flow) then return end
  call('ZADD', schedule, first or string.format('%.0f', floor * LEVEL), flow)
end

-- The only member of a flow and its first-ready time (text); nil when it has none, or a jobs.
local function single(pool, flow)
  local value = call('HGET', singletons_key(pool), flow)
  if not value then return nil end
  local ready, member = string.match(value, '^(%d+) (.*)$')
  return member or value, ready or '0' -- something foreign: whoever takes it puts it aside
end

-- words: score, member, ... of one flow. One that was empty joins the schedule; a paused group's leaves it when met (pick.lua).
function put(pool, flow, words)
  local jobs = flow_key(pool, flow)
  if call('EXISTS', jobs) == 0 then
    local member, ready = single(pool, flow)
    if member then
      call('HDEL', singletons_key(pool), flow)
      call('ZADD', jobs, ready, member)
      -- A release that knows no singletons may have taken it away. Not so that of a paused group: as long as its flow is in the
      -- schedule, it may get the turn of those that are aged.
      local rules = byte(pool) == 114 and rules_of(hex(sub(words[2], 2, 9))) -- r
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

-- What a flow has first: its member and first-ready time (text), or nil.
function first_of(pool, flow)
  local found = call('ZRANGE', flow_key(pool, flow), 0, 0, 'WITHSCORES')
  if found[1] then return found[1], found[2] end
  return single(pool, flow)
end

-- The first-ready time (text) of a member, or nil when it is not there.
function ready_of(pool, flow, member)
  local ready = call('ZSCORE', flow_key(pool, flow), member)
  if ready then return ready end
  local only, its = single(pool, flow)
  return only == member and its or nil
end

function is_empty(pool) return call('EXISTS', schedule_key(pool)) == 0 end
-- A parked pool is empty: nothing in it has to be looked at.
function forget_pool(pool)
  call('SREM', byte(pool) == 117 and UNROUTED_POOLS or PARKED, pool) -- u
  call('ZREM', TIMERS, pool)
end

-- One member leaves; answers how many did (1 or 0).
function remove(pool, flow, member)
  local jobs = flow_key(pool, flow)
  local gone = call('ZREM', jobs, member)
  if gone == 0 and single(pool, flow) == member then gone = call('HDEL', singletons_key(pool), flow) end
  if gone == 1 and call('EXISTS', jobs) == 0 then
    call('ZREM', schedule_key(pool), flow)
    if byte(pool) ~= 114 and is_empty(pool) then forget_pool(pool) end -- r
  end
  return gone
end

-- The flow that is served next, whose time has come most of all among the lowest priority number, or nil. `aging` (ms):
-- every second turn belongs to a lower priority whose next job is ready for longer, those priorities in turn.
function next_flow(pool, aging)
  local schedule = schedule_key(pool)
  local first = call('ZRANGE', schedule, 0, 0)[1]
  if not first or not aging then return first end
  local last = call('ZRANGE', schedule, -1, -1)[1]
  if byte(last, 1) == byte(first, 1) then return first end
  -- Whose turn it is: 1 after a turn of the aged, then the priority that had the last one: aged priorities take turns as well.
  local kept, aged, wrap = call('HGET', LANE_CLOCK, 'a' .. pool) or '00', nil, nil
  local level, before = byte(first, 1) - 47, byte(kept, 2) - 48
  while level <= 9 and not aged do
    local flow = call('ZRANGE', schedule, string.format('%.0f', level * LEVEL), '+inf', 'BYSCORE', 'LIMIT', 0, 1)[1]
    if not flow then break end
    level = byte(flow, 1) - 47
    local _, ready = first_of(pool, flow)
    if ready and NOW - ready > aging then
      wrap = wrap or flow
      if level - 1 > before then aged = flow end
    end
  end
  aged = aged or wrap
  if not aged then return first end
  if sub(kept, 1, 1) == '1' then
    call('HSET', LANE_CLOCK, 'a' .. pool, '0' .. before)
    return first
  end
  call('HSET', LANE_CLOCK, 'a' .. pool, '1' .. sub(aged, 1, 1))
  return aged
end

-- Take up to `count` from a flow; answers member, score, ... and whether the flow is empty now.
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
-- What `count` jobs cost a group of this weight.
function charge(pool, flow, count, weight)
  call('ZINCRBY', schedule_key(pool), string.format('%.6f', count / weight), flow)
end
end
