-- The straight path. free: worker -> "<children> <until_ms>" and its lanes, one a line, announced by readers that
-- block on handoff:<worker>; idle:<lane>: those readers of a lane by until_ms. Whoever makes a job ready gives the oldest ready
-- jobs of its lane to the readers that wait for them, no more than they can run. An element of that list: entry, meta, a line
-- feed, payload.
local LONGEST_BLOCK = 1000 -- ms; whoever seems to wait for longer waited before this server's clock was set back
local function read_free(told)
  local children, till, names = string.match(told or '', '^(%d+) (%d+)\n(.+)$')
  if not children then return nil end
  local lanes = {}
  for lane in string.gmatch(names, '[^\n]+') do lanes[#lanes + 1] = lane end
  till = tonumber(till)
  return {children = tonumber(children), till = till, names = names, lanes = lanes,
          waits = till >= NOW and till <= NOW + LONGEST_BLOCK}
end
-- A reader waits no longer: it reads, or has as much as it can run.
local function stop_waiting(worker, lanes)
  call('HDEL', IDLE, worker)
  for _, lane in ipairs(lanes) do call('ZREM', idle_key(lane), worker) end
end
local hand_off, hand_straight
do
-- What was granted to a reader goes to its list.
local function hand_over(worker, reader, flat)
  local elements = {}
  for at = 1, #flat, 3 do
    elements[#elements + 1] = flat[at] .. flat[at + 1] .. '\n' .. flat[at + 2]
  end
  if not elements[1] then return end
  call('RPUSH', handoff_key(worker), unpack(elements))
  -- Its leases run out long before; the list of a reader that never announced itself goes by itself.
  call('PEXPIRE', handoff_key(worker), 600000)
  reader.children = reader.children - #elements
  if reader.children == 0 then
    stop_waiting(worker, reader.lanes)
  else
    call('HSET', IDLE, worker, digits(reader.children) .. ' ' .. reader.till .. '\n' .. reader.names)
  end
end
-- The reader of a lane that waits for longest, of those whose actions (a digest) are not in `spent`.
local function next_reader(lane, spent)
  while true do
    local worker
    if not next(spent) then
      worker = call('ZRANGE', idle_key(lane), 0, 0)[1]
    else
      local all = call('ZRANGE', idle_key(lane), 0, 999)
      local digests = all[1] and call('HMGET', WORKER_ACTIONS, unpack(all)) or {}
      for i, one in ipairs(all) do
        if not worker and not spent[digests[i] or ''] then worker = one end
      end
    end
    if not worker then return nil end
    local reader = read_free(call('HGET', IDLE, worker))
    if reader and reader.waits then return worker, reader end
    stop_waiting(worker, reader and reader.lanes or {})
    call('ZREM', idle_key(lane), worker)
  end
end
-- What is ready in a lane goes to its readers, up to one who could run more. Others get what that one does not know.
local function hand_out(lane)
  local spent = {}
  while unknown_in[lane] or not is_empty(ready_pool(lane)) do
    local worker, reader = next_reader(lane, spent)
    if not worker then return end
    if unknown_in[lane] then wake_routed(worker, reader.lanes) end
    hand_over(worker, reader, grant(worker, pick(reader.lanes, reader.children, 0, worker)))
    if reader.children > 0 then
      if not unknown_in[lane] then return end
      spent[call('HGET', WORKER_ACTIONS, worker) or ''] = true
    end
  end
end
function hand_off()
  local at = 1
  while ready_lanes[at] do -- it grows meanwhile: what somebody did not know is woken for somebody else
    hand_out(ready_lanes[at])
    at = at + 1
  end
end
-- The commonest job of an idle shard, ready and without a key, where nothing waits: it goes to the first reader of its lane
-- without passing through the pool, which is half the calls. Answers whether it went; everything is left as hand_off leaves it.
function hand_straight(reference, lane, priority)
  local worker, reader = next_reader(lane, {})
  if not worker then return false end
  local open, waiting, mine = served(reader.lanes), {UNROUTED_POOLS}, nil
  for _, one in ipairs(open) do
    if one.lane == lane then mine = one end
    waiting[#waiting + 1] = schedule_key(one.pool)
  end
  if not mine or mine.rules.picky or mine.rules.groups[group_of(reference)] then return false end
  if call('EXISTS', unpack(waiting)) > 0 then return false end
  local known = actions_of(worker)
  if known and not known[action_of(reference)] then return false end
  if open[2] then read_lane_clock(open) end
  while open[2] do -- the lanes whose turn comes first have nothing
    local which = turn_of(open)
    if open[which] == mine then
      took(open, mine, 1)
      write_lane_clock(open)
      break
    end
    table.remove(open, which)
  end
  hand_over(worker, reader, grant(worker, {reference}, {NOW_TEXT}, {lane}, {priority}))
  return true
end
end
-- Something that is looked at in wakes changed: where readers wait nobody's claim would do it at once.
local function serve_waiting()
  work_off()
  if call('HLEN', IDLE) == 0 then return end
  work_off()
  hand_off()
end
-- Whatever was handed to a reader and not read yet. Answers flat as grant() does; what was reclaimed since is left out.
local function read_hand(worker)
  local flat = {}
  for _, element in ipairs(call('LPOP', handoff_key(worker), 1000) or {}) do
    local size = 16 + (SIZES[byte(element, 17)] or 0)
    local entry, meta, payload = sub(element, 1, size), string.match(sub(element, size + 1), '^([^\n]+)\n(.*)$')
    if not meta or not valid(reference_of(entry)) then
      quarantine(element)
    elseif holds(call('HGET', LEASES, reference_of(entry)), entry) then
      local n = #flat
      flat[n + 1], flat[n + 2], flat[n + 3] = entry, meta, payload
    end
  end
  return flat
end
-- An unread hand-off goes back to where it came from.
local function hand_back(entry, meta)
  local reference = reference_of(entry)
  local ready, priority, lane = string.match(meta, '^(%d+) (%d) (%S+)')
  drop(reference, lane)
  if keyed(reference) then
    requeue_keyed(keyed_entry(reference, lane, priority, tonumber(ready), 0))
  else
    place(reference, lane, priority, tonumber(ready), 0)
  end
end
