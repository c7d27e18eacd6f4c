-- Give a waiting reference another priority; it keeps its first-ready time.
-- KEYS[1] prefix; built: meta lanes lanes:<db> ring:<pool> bin:<pool>:<seat> ones:<pool> delayed:<lane number>:<priority> heads
--         behind key:<db>:<tag> leases held:<lane> tries direct rules slots:<db>:<limit> buckets full wakes turns
--         parked unknown knows knows:<digest> free idle:<lane> hand:<consumer> strange
-- ARGV    generation, now, reference, lane, priority that it is thought to have, new priority
-- Returns {code, 1, or 0 when it is handed off or nowhere}
-- Flags   allow-oom
if moved() then return {MOVED} end
local reference, lane, new = ARGV[3], ARGV[4], ARGV[6]
if handed_off(reference) then return {OK, 0} end
local head = keyed(reference) and read_head(reference)
if head and head.reference == reference then
  call('HSET', HEADS, key_field(reference), stander(reference, lane, new, head.ready, head.due).bytes)
end
local found, priority, pool, member = look_for(reference, lane, ARGV[5])
if found == DELAYED then
  local due = call('ZSCORE', delayed_key(lane, priority), reference)
  call('ZREM', delayed_key(lane, priority), reference)
  call('ZADD', delayed_key(lane, new), due, reference)
elseif found ~= NOWHERE and priority ~= new then
  local ready = ready_of(pool, seat_of(reference, priority), member)
  -- The new place first: a parked pool that is empty for a moment would forget when it is looked at.
  if found == READY then
    put(pool, seat_of(reference, new), {ready, reference})
    made_ready(lane)
  else
    park(pool, reference, lane, new, ready)
  end
  remove(pool, seat_of(reference, priority), member)
elseif found == NOWHERE then
  local one = keyed(reference) and find_in_line(reference)
  if not one then return {OK, 0} end
  call('ZREM', line_key(reference), one.bytes)
  call('ZADD', line_key(reference), rank(reference, one.ready), stander(reference, lane, new, one.ready, one.due).bytes)
end
hand_off()
return {OK, 1}
