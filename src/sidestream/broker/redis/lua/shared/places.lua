-- Where a job waits: in the pool of its lane, scored by its first-ready time, or in delayed:<lane number>:<priority>, scored by
-- its due time, or parked (parked.lua).
local NOWHERE, READY, DELAYED, BEHIND_KEY, LEASED, LIMITED, PAUSED, UNROUTED = 0, 1, 2, 3, 4, 5, 6, 7
local function ready_pool(lane) return 'r' .. lane_number(lane) end
local function place(reference, lane, priority, ready, due)
  if due > NOW then
    call('ZADD', delayed_key(lane, priority), digits(due), reference)
  else
    put(ready_pool(lane), flow_of(reference, priority), {digits(ready), reference})
    made_ready(lane)
  end
end
local function is_leased(reference) return call('HEXISTS', LEASES, reference) == 1 end

-- Pools in which a job of this lane may be parked, with what that means.
local function parked_pools(reference, lane)
  local database, action = database_of(lane), hex(action_of(reference))
  local limit = limit_of(reference)
  local pools = {
    {'l' .. database .. ':a' .. action, LIMITED}, {'p' .. database .. ':a' .. action, PAUSED},
    {'p' .. database .. ':x' .. action .. hex(group_of(reference)), PAUSED},
    {'u' .. lane_number(lane) .. ':' .. action, UNROUTED},
  }
  if limit then pools[5] = {'l' .. database .. ':k' .. hex(limit), LIMITED} end
  return pools
end
local function parked_member(reference, lane, priority) return reference .. priority .. lane end

-- Look for a waiting job, in the priority of the hint first. Answers place, priority, pool (nil: delayed), member.
local function look_for(reference, lane, hint)
  local pools = {}
  for _, pool in ipairs(parked_pools(reference, lane)) do
    if call('EXISTS', schedule_key(pool[1])) == 1 then pools[#pools + 1] = pool end
  end
  for nth = 0, 9 do
    local priority = digits((tonumber(hint) + nth) % 10)
    local flow = flow_of(reference, priority)
    if ready_of(ready_pool(lane), flow, reference) then
      return READY, priority, ready_pool(lane), reference
    end
    if call('ZSCORE', delayed_key(lane, priority), reference) then return DELAYED, priority end
    for _, pool in ipairs(pools) do
      local member = parked_member(reference, lane, priority)
      if ready_of(pool[1], flow, member) then return pool[2], priority, pool[1], member end
    end
  end
  return NOWHERE
end
-- Out of wherever it waits; answers how often it was found (1 or 0), and its priority.
local function unplace(reference, lane, hint)
  local found, priority, pool, member = look_for(reference, lane, hint)
  if found == NOWHERE then return 0, hint end
  if not pool then return call('ZREM', delayed_key(lane, priority), reference), priority end
  return remove(pool, flow_of(reference, priority), member), priority
end
