-- Hand-off to idle workers. A worker that blocks on its list handoff:<worker> is in idle: worker -> "<children> <until_ms>"
-- and its lanes, one per line; and in idle:<lane>, scored by until_ms, for each lane. A function that makes a job ready
-- leases the next ready jobs of the lane to the idle workers, no more than they have free children. An element of the list
-- is an entry, its meta, a line feed and the payload.
local MOST_AWAKE = 4 -- idle workers that wake for a delayed job: more than one, as some may die or get other jobs before
local LONGEST_BLOCK = 1000 -- ms; a longer wait was announced before the server's clock was set back
local function read_idle(text)
  local children, until_ms, names = string.match(text or '', '^(%d+) (%d+)\n(.+)$')
  if not children then return nil end
  local lanes = {}
  for lane in string.gmatch(names, '[^\n]+') do lanes[#lanes + 1] = lane end
  until_ms = tonumber(until_ms)
  return {children = tonumber(children), until_ms = until_ms, names = names, lanes = lanes,
          waits = until_ms >= NOW and until_ms <= NOW + LONGEST_BLOCK}
end
-- A worker is no longer idle: it claims, or has as many jobs as it can run.
local function end_idle(worker, lanes)
  call('HDEL', IDLE, worker)
  for _, lane in ipairs(lanes) do call('ZREM', idle_key(lane), worker) end
end
local hand_off, hand_off_directly
do
-- Push granted jobs to the list of an idle worker.
local function push_handoff(worker, idle, granted)
  local elements = {}
  for at = 1, #granted, 3 do
    elements[#elements + 1] = granted[at] .. granted[at + 1] .. '\n' .. granted[at + 2]
  end
  if not elements[1] then return end
  call('RPUSH', handoff_key(worker), unpack(elements))
  -- The leases expire long before; the expiry removes the list of a worker that never announced itself.
  call('PEXPIRE', handoff_key(worker), 600000)
  idle.children = idle.children - #elements
  if idle.children == 0 then
    end_idle(worker, idle.lanes)
  else
    call('HSET', IDLE, worker, digits(idle.children) .. ' ' .. idle.until_ms .. '\n' .. idle.names)
  end
end
-- The worker of a lane that has been idle for longest, except those whose set of actions (its digest) is in `spent`.
local function next_idle(lane, spent)
  while true do
    local worker
    if not next(spent) then
      worker = call('ZRANGE', idle_key(lane), 0, 0)[1]
    else
      local all = call('ZRANGE', idle_key(lane), 0, 999)
      local digests = all[1] and call('HMGET', WORKER_ACTIONS, unpack(all)) or {}
      for i, candidate in ipairs(all) do
        if not worker and not spent[digests[i] or ''] then worker = candidate end
      end
    end
    if not worker then return nil end
    local idle = read_idle(call('HGET', IDLE, worker))
    if idle and idle.waits then return worker, idle end
    end_idle(worker, idle and idle.lanes or {})
    call('ZREM', idle_key(lane), worker)
  end
end
-- Hand the ready jobs of a lane to its idle workers until one has children left over. Jobs that this one does not know
-- go to workers that know other actions.
local function hand_off_lane(lane)
  local spent = {}
  while unrouted_lanes[lane] or not is_empty(ready_pool(lane)) do
    local worker, idle = next_idle(lane, spent)
    if not worker then return end
    if unrouted_lanes[lane] then unpark_routed(worker, idle.lanes) end
    push_handoff(worker, idle, grant(worker, pick(idle.lanes, idle.children, 0, worker)))
    if idle.children > 0 then
      if not unrouted_lanes[lane] then return end
      spent[call('HGET', WORKER_ACTIONS, worker) or ''] = true
    end
  end
end
function hand_off()
  local at = 1
  while ready_lanes[at] do -- it grows meanwhile: a job that one worker does not know is unparked for another
    hand_off_lane(ready_lanes[at])
    at = at + 1
  end
end
-- The fast path for one ready job without a key when no other job waits: it goes to the first idle worker of its lane
-- without passing through the pool, with half the commands. Returns whether it did; the result is the same as hand_off's.
function hand_off_directly(reference, lane, priority)
  local worker, idle = next_idle(lane, {})
  if not worker then return false end
  local open, waiting, ours = served(idle.lanes), {UNROUTED_SET}, nil
  for _, candidate in ipairs(open) do
    if candidate.name == lane then ours = candidate end
    waiting[#waiting + 1] = schedule_key(candidate.pool)
  end
  if not ours or ours.rules.per_job or ours.rules.groups[group_of(reference)] then return false end
  if call('EXISTS', unpack(waiting)) > 0 then return false end
  local known = actions_of(worker)
  if known and not known[action_of(reference)] then return false end
  if open[2] then read_lane_clock(open) end
  while open[2] do -- skip the empty lanes whose turn comes first
    local which = next_lane(open)
    if open[which] == ours then
      charge_lane(open, ours, 1)
      write_lane_clock(open)
      break
    end
    table.remove(open, which)
  end
  push_handoff(worker, idle, grant(worker, {reference}, {NOW_TEXT}, {lane}, {priority}))
  return true
end
end
-- Timers were added: run them at once for idle workers, which make no claim that would run them.
local function serve_idle()
  run_timers()
  if call('HLEN', IDLE) == 0 then return end
  run_timers()
  hand_off()
end
-- Read what was handed to a worker and not read yet, without what was reclaimed since. Returns the same list as grant().
local function read_handoff(worker)
  local granted = {}
  for _, element in ipairs(call('LPOP', handoff_key(worker), 1000) or {}) do
    local size = 16 + (SIZES[byte(element, 17)] or 0)
    local entry, meta, payload = sub(element, 1, size), string.match(sub(element, size + 1), '^([^\n]+)\n(.*)$')
    if not meta or not valid(reference_of(entry)) then
      quarantine(element)
    elseif holds(call('HGET', LEASES, reference_of(entry)), entry) then
      local n = #granted
      granted[n + 1], granted[n + 2], granted[n + 3] = entry, meta, payload
    end
  end
  return granted
end
-- Return an unread hand-off to its place.
local function return_handoff(entry, meta)
  local reference = reference_of(entry)
  local ready, priority, lane = string.match(meta, '^(%d+) (%d) (%S+)')
  end_lease(reference, lane)
  if keyed(reference) then
    requeue_keyed(keyed_entry(reference, lane, priority, tonumber(ready), 0))
  else
    place(reference, lane, priority, tonumber(ready), 0)
  end
end
