-- Give a waiting job another priority; it keeps its first-ready time.
-- KEYS[1] prefix; builds meta JOBS
-- ARGV    generation, now, reference, lane, the priority that it probably has, new priority
-- Returns {code, 1, or 0 when it is leased or nowhere}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end
local reference, lane, new = ARGV[3], ARGV[4], ARGV[6]
if is_leased(reference) then return {OK, 0} end
local head = keyed(reference) and read_head(reference)
if head and head.reference == reference then
  call('HSET', HEADS, key_field(reference), keyed_entry(reference, lane, new, head.ready, head.due).bytes)
end
local found, priority, pool, member = find_place(reference, lane, ARGV[5])
if found == DELAYED then
  local due = call('ZSCORE', delayed_key(lane, priority), reference)
  call('ZREM', delayed_key(lane, priority), reference)
  call('ZADD', delayed_key(lane, new), due, reference)
elseif found ~= NOWHERE and priority ~= new then
  local ready = ready_of(pool, flow_of(reference, priority), member)
  -- Add before removing: a parked pool that is empty for a moment would lose its timer.
  if found == READY then
    put(pool, flow_of(reference, new), {ready, reference})
    made_ready(lane)
  else
    park(pool, reference, lane, new, ready)
  end
  remove(pool, flow_of(reference, priority), member)
elseif found == NOWHERE then
  local behind = keyed(reference) and find_behind(reference)
  if not behind then return {OK, 0} end
  call('ZREM', behind_key(reference), behind.bytes)
  local entry = keyed_entry(reference, lane, new, behind.ready, behind.due)
  call('ZADD', behind_key(reference), rank(reference, behind.ready), entry.bytes)
end
hand_off()
return {OK, 1}
