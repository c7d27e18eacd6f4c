-- Give a waiting reference another priority; it keeps its first-ready time.
-- KEYS[1] prefix; built: meta lanes lanes:<db> schedule:<pool> flow:<pool>:<flow> singletons:<pool> delayed:<lane
--         number>:<priority> heads behind key:<db>:<tag> leases leased:<lane> attempts direct rules
--         slots:<db>:<limit> buckets refills timers turns parked unrouted worker_actions worker_actions:<digest>
--         free idle:<lane> handoff:<worker> quarantine
-- ARGV    generation, now, reference, lane, priority that it is thought to have, new priority
-- Returns {code, 1, or 0 when it is handed off or nowhere}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end
local reference, lane, new = ARGV[3], ARGV[4], ARGV[6]
if is_leased(reference) then return {OK, 0} end
local head = keyed(reference) and read_head(reference)
if head and head.reference == reference then
  call('HSET', HEADS, key_field(reference), keyed_entry(reference, lane, new, head.ready, head.due).bytes)
end
local found, priority, pool, member = look_for(reference, lane, ARGV[5])
if found == DELAYED then
  local due = call('ZSCORE', delayed_key(lane, priority), reference)
  call('ZREM', delayed_key(lane, priority), reference)
  call('ZADD', delayed_key(lane, new), due, reference)
elseif found ~= NOWHERE and priority ~= new then
  local ready = ready_of(pool, flow_of(reference, priority), member)
  -- The new place first: a parked pool that is empty for a moment would forget when it is looked at.
  if found == READY then
    put(pool, flow_of(reference, new), {ready, reference})
    made_ready(lane)
  else
    park(pool, reference, lane, new, ready)
  end
  remove(pool, flow_of(reference, priority), member)
elseif found == NOWHERE then
  local one = keyed(reference) and find_in_line(reference)
  if not one then return {OK, 0} end
  call('ZREM', line_key(reference), one.bytes)
  local moved = keyed_entry(reference, lane, new, one.ready, one.due)
  call('ZADD', line_key(reference), rank(reference, one.ready), moved.bytes)
end
hand_off()
return {OK, 1}
