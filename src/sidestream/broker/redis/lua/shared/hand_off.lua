-- The straight path. free: consumer -> "<children> <until_ms>" and its lanes, one a line, announced by readers that
-- block on hand:<consumer>. Whoever makes a job ready gives the oldest ready jobs to the readers that wait for them, no
-- more than they can run. An element of that list: entry, meta, a line feed, payload.
local function read_free(told)
  local children, till, names = string.match(told, '^(%d+) (%d+)\n(.+)$')
  if not children or tonumber(till) < NOW then return nil end
  local lanes = {}
  for lane in string.gmatch(names, '[^\n]+') do lanes[#lanes + 1] = lane end
  return {children = tonumber(children), till = till, names = names, lanes = lanes}
end
-- What was granted to a reader goes to its list.
local function hand_over(consumer, reader, flat)
  local elements = {}
  for at = 1, #flat, 3 do
    elements[#elements + 1] = flat[at] .. flat[at + 1] .. '\n' .. flat[at + 2]
  end
  if not elements[1] then return end
  call('RPUSH', hand_key(consumer), unpack(elements))
  -- Its leases run out long before; the list of a reader that never announced itself goes by itself.
  call('PEXPIRE', hand_key(consumer), 600000)
  if #elements == reader.children then
    call('HDEL', FREE, consumer)
  else
    call('HSET', FREE, consumer, digits(reader.children - #elements) .. ' ' .. reader.till .. '\n' .. reader.names)
  end
end
local function hand_to(consumer, told)
  local reader = read_free(told)
  if not reader then
    call('HDEL', FREE, consumer)
    return
  end
  wake_known(consumer, reader.lanes)
  hand_over(consumer, reader, grant(consumer, pick(reader.lanes, reader.children, 0, consumer)))
end
local function hand_off()
  local unknown = false
  for _ = 1, 2 do -- again when somebody met an action that he does not know: one before him may
    local announced = call('HGETALL', FREE)
    if not announced[1] then return end
    for i = 1, #announced, 2 do
      hand_to(announced[i], announced[i + 1])
      unknown = unknown or met_unknown
    end
    if not unknown then return end
  end
end
-- The commonest job of an idle shard, ready and without a key, where nothing waits: it goes to the first reader of its lane
-- without passing through the pool, which is half the calls. Answers whether it went; everything is left as hand_off leaves it.
local function hand_straight(reference, lane, priority)
  local announced, consumer, reader, mine = call('HGETALL', FREE), nil, nil, nil
  for i = 1, #announced, 2 do
    reader = read_free(announced[i + 1])
    if not reader then return false end
    for _, its in ipairs(reader.lanes) do
      if its == lane then consumer = announced[i] end
    end
    if consumer then break end
  end
  if not consumer then return false end
  local open, waiting = served(reader.lanes), {UNKNOWN}
  for _, one in ipairs(open) do
    if one.lane == lane then mine = one end
    waiting[#waiting + 1] = ring_key(one.pool)
  end
  if not mine or mine.rules.picky or mine.rules.groups[group_of(reference)] then return false end
  if call('EXISTS', unpack(waiting)) > 0 then return false end
  local known = known_to(consumer)
  if known and not known[action_of(reference)] then return false end
  if open[2] then read_turns(open) end
  while open[2] do -- the lanes whose turn comes first have nothing
    local which = turn_of(open)
    if open[which] == mine then
      took(open, mine, 1)
      write_turns(open)
      break
    end
    table.remove(open, which)
  end
  hand_over(consumer, reader, grant(consumer, {reference}, {NOW_TEXT}, {lane}, {priority}))
  return true
end
-- Something that is looked at in wakes changed: where readers wait nobody's claim would do it at once.
local function serve_waiting()
  work_off()
  if call('HLEN', FREE) == 0 then return end
  work_off()
  hand_off()
end
-- Whatever was handed to a reader and not read yet. Answers flat as grant() does; what was reclaimed since is left out.
local function read_hand(consumer)
  local flat = {}
  for _, element in ipairs(call('LPOP', hand_key(consumer), 1000) or {}) do
    local size = 16 + (SIZES[byte(element, 17)] or 0)
    local entry, meta, payload = sub(element, 1, size), string.match(sub(element, size + 1), '^([^\n]+)\n(.*)$')
    if not meta or not valid(reference_of(entry)) then
      put_aside(element)
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
    stand_back(stander(reference, lane, priority, tonumber(ready), 0))
  else
    place(reference, lane, priority, tonumber(ready), 0)
  end
end
