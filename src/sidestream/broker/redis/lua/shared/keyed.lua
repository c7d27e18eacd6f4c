-- Order by key. heads: key field -> the only job of the key that may run. key:<db>:<kind><tag>: the jobs behind the head,
-- by row id (direct jobs: by first-ready time). Both hold keyed entries: "<reference><ready_ms> <due_ms> <priority>
-- <lane>". Rows and direct jobs have separate heads.
local key_field, behind_key, rank, keyed_entry, read_head, enqueue_behind, remove_behind, promote_head, enqueue_keyed,
  requeue_keyed, pass_key_on, find_behind
do
local function kind_letter(reference) return is_direct(reference) and 'd' or 'r' end
function key_field(reference) return kind_letter(reference) .. sub(reference, 2, 9) .. sub(reference, -8) end
function behind_key(reference)
  return P .. 'key:' .. hex(sub(reference, 2, 9)) .. ':' .. kind_letter(reference) .. hex(sub(reference, -8))
end
function rank(reference, ready) return is_direct(reference) and ready or row_id(reference) end
local function precedes(job, other)
  local a, b = rank(job.reference, job.ready), rank(other.reference, other.ready)
  return a < b or (a == b and job.reference < other.reference)
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

function enqueue_behind(job)
  call('ZADD', behind_key(job.reference), rank(job.reference, job.ready), job.bytes)
end
function remove_behind(job) return call('ZREM', behind_key(job.reference), job.bytes) end
local function become_head(job, hold)
  call('HSET', HEADS, key_field(job.reference), job.bytes)
  place(job.reference, job.lane, job.priority, job.ready, hold or job.due)
end
-- The first job behind the head. Foreign members go to quarantine.
local function first_behind(reference)
  local behind = behind_key(reference)
  while true do
    local bytes = call('ZRANGE', behind, 0, 0)[1]
    if not bytes then return nil end
    local job = read_keyed_entry(bytes)
    if job then return job end
    call('ZREM', behind, bytes)
    quarantine(bytes)
  end
end
-- The key has no head: the first job behind it becomes the head.
function promote_head(reference)
  local job = first_behind(reference)
  if not job then
    call('HDEL', HEADS, key_field(reference))
    return
  end
  remove_behind(job)
  become_head(job)
end

-- Place a keyed job by its id. A job with a smaller id than the head replaces it, unless the head is leased.
-- hold: delay the job until this ms although its row is due. It is not part of the keyed entry, so a head that is replaced
-- loses it.
function enqueue_keyed(job, hold)
  local head = read_head(job.reference)
  if not head or head.reference == job.reference then
    become_head(job, hold)
  elseif precedes(job, head) and not is_leased(head.reference) then
    unplace(head.reference, head.lane, head.priority)
    enqueue_behind(head)
    become_head(job, hold)
  else
    enqueue_behind(job)
  end
end
-- Place a keyed job that its worker released: it stays the head unless a job with a smaller id has come meanwhile.
function requeue_keyed(job, hold)
  local head, first = read_head(job.reference), first_behind(job.reference)
  if head and head.reference ~= job.reference then
    enqueue_keyed(job, hold)
  elseif first and precedes(first, job) then
    enqueue_behind(job)
    promote_head(job.reference)
  else
    become_head(job, hold)
  end
end
-- A keyed job ended: if it was the head, the next job becomes the head.
function pass_key_on(reference)
  local head = call('HGET', HEADS, key_field(reference))
  if head and sub(head, 1, #reference) == reference then promote_head(reference) end
end
-- The keyed entry of a job that is behind a head, or nil. Only the entry itself tells the rank of a direct job, so the
-- first 10,000 entries are searched; only requests by people need this.
function find_behind(reference)
  if is_direct(reference) then
    for at = 0, 9000, 1000 do
      local lot = call('ZRANGE', behind_key(reference), at, at + 999)
      for _, bytes in ipairs(lot) do
        if sub(bytes, 1, #reference) == reference then return read_keyed_entry(bytes) end
      end
      if #lot < 1000 then return nil end
    end
    return nil
  end
  local id = row_id(reference)
  for _, bytes in ipairs(call('ZRANGEBYSCORE', behind_key(reference), id, id)) do
    if sub(bytes, 1, #reference) == reference then return read_keyed_entry(bytes) end
  end
  return nil
end
end
