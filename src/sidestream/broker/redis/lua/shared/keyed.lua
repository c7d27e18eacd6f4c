-- Order by key. heads: key field -> the one job of the key that may run; key:<database>:<kind><tag>: a sorted set of
-- those behind it, by row id (direct jobs: by first-ready time). Both hold "<reference><ready_ms> <due_ms> <priority> <lane>".
-- behind: lane -> how many of its jobs stand in such lines.
local key_field, line_key, rank, keyed_entry, read_head, join_line, leave_line, promote_next, enqueue_keyed,
  requeue_keyed, free_key, find_in_line
do -- the rest is known in this file alone
function key_field(reference)
  return (is_direct(reference) and 'd' or 'r') .. sub(reference, 2, 9) .. sub(reference, -8)
end
function line_key(reference)
  return P .. 'key:' .. hex(sub(reference, 2, 9)) .. ':' .. (is_direct(reference) and 'd' or 'r')
    .. hex(sub(reference, -8))
end
function rank(reference, ready) return is_direct(reference) and ready or row_id(reference) end
local function stands_before(one, other)
  local a, b = rank(one.reference, one.ready), rank(other.reference, other.ready)
  return a < b or (a == b and one.reference < other.reference)
end

function keyed_entry(reference, lane, priority, ready, due)
  return {reference = reference, lane = lane, priority = priority, ready = ready, due = due,
          bytes = reference .. digits(ready) .. ' ' .. digits(due) .. ' ' .. priority .. ' ' .. lane}
end
local function read_keyed_entry(bytes)
  local size = SIZES[byte(bytes, 1)] or 0
  local reference = sub(bytes, 1, size)
  local ready, due, priority, lane = string.match(sub(bytes, size + 1), '^(%d+) (%d+) (%d) (.+)$')
  if not lane or not valid(reference) then return nil end
  return {reference = reference, lane = lane, priority = priority, ready = tonumber(ready), due = tonumber(due),
          bytes = bytes}
end
function read_head(reference)
  local bytes = call('HGET', HEADS, key_field(reference))
  return bytes and read_keyed_entry(bytes)
end

function join_line(one)
  if call('ZADD', line_key(one.reference), rank(one.reference, one.ready), one.bytes) == 1 then
    call('HINCRBY', BEHIND, one.lane, 1)
  end
end
function leave_line(one)
  if call('HINCRBY', BEHIND, one.lane, -1) <= 0 then call('HDEL', BEHIND, one.lane) end
end
local function become_head(one, hold)
  call('HSET', HEADS, key_field(one.reference), one.bytes)
  place(one.reference, one.lane, one.priority, one.ready, hold or one.due)
end
-- The first of the line, foreign members put aside.
local function first_in_line(reference)
  local line = line_key(reference)
  while true do
    local bytes = call('ZRANGE', line, 0, 0)[1]
    if not bytes then return nil end
    local one = read_keyed_entry(bytes)
    if one then return one end
    call('ZREM', line, bytes)
    quarantine(bytes)
  end
end
-- The key has no head any more: the first of its line stands up.
function promote_next(reference)
  local one = first_in_line(reference)
  if not one then
    call('HDEL', HEADS, key_field(reference))
    return
  end
  call('ZREM', line_key(reference), one.bytes)
  leave_line(one)
  become_head(one)
end

-- A keyed job takes its place by id. A smaller id than the head's becomes head itself, unless the head is handed off.
-- hold: it waits until then although its row says due (the reason lies elsewhere, so a replaced head forgets it).
function enqueue_keyed(one, hold)
  local head = read_head(one.reference)
  if not head or head.reference == one.reference then
    become_head(one, hold)
  elseif stands_before(one, head) and not is_leased(head.reference) then
    unplace(head.reference, head.lane, head.priority)
    join_line(head)
    become_head(one, hold)
  else
    join_line(one)
  end
end
-- A keyed job comes back from its worker: it stays head unless a smaller id has come meanwhile.
function requeue_keyed(one, hold)
  local head, first = read_head(one.reference), first_in_line(one.reference)
  if head and head.reference ~= one.reference then
    enqueue_keyed(one, hold)
  elseif first and stands_before(first, one) then
    join_line(one)
    promote_next(one.reference)
  else
    become_head(one, hold)
  end
end
-- A keyed job ended: if it was the head, the next one stands up.
function free_key(reference)
  local head = call('HGET', HEADS, key_field(reference))
  if head and sub(head, 1, #reference) == reference then promote_next(reference) end
end
-- Where a job stands in its line, or nil. A direct job is ranked by a time that only its place tells: it is looked for among
-- the first 10,000, for a person who asks.
function find_in_line(reference)
  if is_direct(reference) then
    for at = 0, 9000, 1000 do
      local lot = call('ZRANGE', line_key(reference), at, at + 999)
      for _, bytes in ipairs(lot) do
        if sub(bytes, 1, #reference) == reference then return read_keyed_entry(bytes) end
      end
      if #lot < 1000 then return nil end
    end
    return nil
  end
  local id = row_id(reference)
  for _, bytes in ipairs(call('ZRANGEBYSCORE', line_key(reference), id, id)) do
    if sub(bytes, 1, #reference) == reference then return read_keyed_entry(bytes) end
  end
  return nil
end
end
