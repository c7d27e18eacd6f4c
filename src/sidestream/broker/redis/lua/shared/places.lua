-- The places of a job. A waiting job is in the ready pool of its lane, in delayed:<lane number>:<priority> (scored by its
-- due time), in a parked pool (parked.lua), or behind the head of its key (keyed.lua).
local NOWHERE, READY, DELAYED, BEHIND_KEY, LEASED, LIMITED, PAUSED, UNROUTED = 0, 1, 2, 3, 4, 5, 6, 7
local function ready_pool(lane) return POOL.READY .. lane_number(lane) end
local function limited_pool(database, limit) return POOL.LIMITED .. database .. ':' .. limit end
local function paused_pool(database, kind, tags) return POOL.PAUSED .. database .. ':' .. kind .. tags end
local function unrouted_pool(lane, action) return POOL.UNROUTED .. lane_number(lane) .. ':' .. action end
-- Put a job into its ready pool, or delay it until `due` (ms).
local function place(reference, lane, priority, ready, due)
  if due > NOW then
    call('ZADD', delayed_key(lane, priority), digits(due), reference)
  else
    put(ready_pool(lane), flow_of(reference, priority), {digits(ready), reference})
    made_ready(lane)
  end
end
local function is_leased(reference) return call('HEXISTS', LEASES, reference) == 1 end

-- The pools in which a job of this lane may be parked, with the place that each stands for.
local function parked_pools(reference, lane)
  local database, action = database_of(lane), hex(action_of(reference))
  local limit = limit_of(reference)
  local pools = {
    {limited_pool(database, LIMIT.ACTION .. action), LIMITED},
    {paused_pool(database, PAUSE.ACTION, action), PAUSED},
    {paused_pool(database, PAUSE.GROUP_ACTION, action .. hex(group_of(reference))), PAUSED},
    {unrouted_pool(lane, action), UNROUTED},
  }
  if limit then pools[5] = {limited_pool(database, LIMIT.KEY .. hex(limit)), LIMITED} end
  return pools
end
local function parked_member(reference, lane, priority) return reference .. priority .. lane end

-- Find a waiting job that is not behind its key; the priority `hint` is tried first. Returns place, priority, pool (nil if
-- delayed) and member.
local function find_place(reference, lane, hint)
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
-- Remove a job from where find_place finds it. Returns how many were removed (1 or 0), and the priority.
local function unplace(reference, lane, hint)
  local found, priority, pool, member = find_place(reference, lane, hint)
  if found == NOWHERE then return 0, hint end
  if not pool then return call('ZREM', delayed_key(lane, priority), reference), priority end
  return remove(pool, flow_of(reference, priority), member), priority
end
