-- Where a reference is, as a number that the Python side turns into a Place.
local NOWHERE, READY, DELAYED, BEHIND_KEY, HANDED_OFF = 0, 1, 2, 3, 4
local function find_waiting(reference, lane)
  if handed_off(reference) then return HANDED_OFF end
  if call('ZSCORE', ready_key(lane), reference) then return READY end
  if call('ZSCORE', delayed_key(lane), reference) then return DELAYED end
  return NOWHERE
end
local function find(reference, lane)
  local place = find_waiting(reference, lane)
  if place ~= NOWHERE or not keyed(reference) or not find_in_line(reference) then return place end
  -- A line whose head is nowhere would wait for ever: its first stands up, which may be this one.
  local head = read_head(reference)
  if head and find_waiting(head.reference, head.lane) ~= NOWHERE then return BEHIND_KEY end
  seat_next(reference)
  return find_in_line(reference) and BEHIND_KEY or find_waiting(reference, lane)
end
