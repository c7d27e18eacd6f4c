-- The straight path. free: consumer -> "<children> <until_ms>" and its lanes, one a line, announced by readers that
-- block on hand:<consumer>. Whoever makes a job ready gives the oldest ready jobs to the readers that wait for them, no
-- more than they can run. An element of that list: entry, meta, a line feed, payload.
local function hand_to(consumer, told)
  local children, till, names = string.match(told, '^(%d+) (%d+)\n(.+)$')
  children = tonumber(children)
  if not children or tonumber(till) < NOW then
    call('HDEL', FREE, consumer)
    return
  end
  local lanes = {}
  for lane in string.gmatch(names, '[^\n]+') do lanes[#lanes + 1] = lane end
  wake_known(consumer, lanes)
  local flat, elements = grant(consumer, pick(lanes, children, 0, consumer)), {}
  for at = 1, #flat, 3 do
    elements[#elements + 1] = flat[at] .. flat[at + 1] .. '\n' .. flat[at + 2]
  end
  if not elements[1] then return end
  call('RPUSH', hand_key(consumer), unpack(elements))
  -- Its leases run out long before; the list of a reader that died goes by itself.
  call('PEXPIRE', hand_key(consumer), 600000)
  if #elements == children then
    call('HDEL', FREE, consumer)
  else
    call('HSET', FREE, consumer, digits(children - #elements) .. ' ' .. till .. '\n' .. names)
  end
end
local function hand_off()
  if call('HLEN', FREE) == 0 then return end
  local unknown = false
  for _ = 1, 2 do -- again when somebody met an action that he does not know: one before him may
    local announced = call('HGETALL', FREE)
    for i = 1, #announced, 2 do
      hand_to(announced[i], announced[i + 1])
      unknown = unknown or met_unknown
    end
    if not unknown then return end
  end
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
