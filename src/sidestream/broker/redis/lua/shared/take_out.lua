-- A job that waits leaves its place, and its key passes on; its known bit and its bytes are the caller's. Answers whether it did.
local function take_out(reference, lane, priority)
  if is_leased(reference) then return false end
  local head = keyed(reference) and read_head(reference)
  -- Who met it as the head of another's key may know neither its lane nor its priority.
  if head and head.reference == reference then lane, priority = head.lane, head.priority end
  local found = unplace(reference, lane, priority)
  if found == 0 and keyed(reference) then
    local one = find_in_line(reference)
    if one then
      found = call('ZREM', line_key(reference), one.bytes)
      leave_line(one)
    end
  end
  if found == 0 then return false end
  call('HDEL', ATTEMPTS, reference)
  if keyed(reference) then free_key(reference) end
  return true
end
