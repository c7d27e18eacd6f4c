-- Remove a waiting job from its place and pass its key on; the caller removes its published bit or its bytes. Returns
-- whether the job was found.
local function remove_waiting(reference, lane, priority)
  if is_leased(reference) then return false end
  local head = keyed(reference) and read_head(reference)
  -- The caller may have found it only as the head of another job's key, without its lane and priority.
  if head and head.reference == reference then lane, priority = head.lane, head.priority end
  local found = unplace(reference, lane, priority)
  if found == 0 and keyed(reference) then
    local waiting = find_behind(reference)
    if waiting then found = remove_behind(waiting) end
  end
  if found == 0 then return false end
  call('HDEL', ATTEMPTS, reference)
  if keyed(reference) then pass_key_on(reference) end
  return true
end
