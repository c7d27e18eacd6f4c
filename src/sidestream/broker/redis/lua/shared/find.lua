-- Where a reference is, as a number that the Python side turns into a Place (places.lua).
local function find_waiting(reference, lane, hint)
  if is_leased(reference) then return LEASED end
  return (look_for(reference, lane, hint))
end
local function find(reference, lane, hint)
  local found = find_waiting(reference, lane, hint)
  if found ~= NOWHERE or not keyed(reference) or not find_in_line(reference) then return found end
  -- A line whose head is nowhere would wait for ever: its first stands up, which may be this one.
  local head = read_head(reference)
  if head and find_waiting(head.reference, head.lane, head.priority) ~= NOWHERE then return BEHIND_KEY end
  promote_next(reference)
  return find_in_line(reference) and BEHIND_KEY or find_waiting(reference, lane, hint)
end
