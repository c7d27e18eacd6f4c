-- Find the place of a reference: one of the numbers in places.lua, which Python turns into a Place.
local find
do
local function find_waiting(reference, lane, hint)
  if is_leased(reference) then return LEASED end
  return (find_place(reference, lane, hint))
end
function find(reference, lane, hint)
  local found = find_waiting(reference, lane, hint)
  if found ~= NOWHERE or not keyed(reference) or not find_behind(reference) then return found end
  -- A key whose head is nowhere would wait for ever: the first job behind it, maybe this one, becomes the head.
  local head = read_head(reference)
  if head and find_waiting(head.reference, head.lane, head.priority) ~= NOWHERE then return BEHIND_KEY end
  promote_head(reference)
  return find_behind(reference) and BEHIND_KEY or find_waiting(reference, lane, hint)
end
end
