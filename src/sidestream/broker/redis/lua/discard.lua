-- Remove a waiting reference whose row ended; its known bit goes too, so that a retry by a person publishes it again.
-- KEYS[1] prefix; built: meta known:<db>:<chunk> lanes lanes:<db> ring:<pool> bin:<pool>:<seat> ones:<pool>
--         delayed:<lane number>:<priority> heads behind key:<db>:<tag> leases held:<lane> tries direct rules
--         slots:<db>:<limit> buckets full wakes turns parked unknown knows knows:<digest> free idle:<lane> hand:<consumer>
--         strange
-- ARGV    generation, now, reference, lane, priority
-- Returns {code, 1, or 0 when it is handed off or nowhere}
-- Flags   allow-oom
if moved() then return {MOVED} end

local reference = ARGV[3]
if not take_out(reference, ARGV[4], ARGV[5]) then return {OK, 0} end
if is_direct(reference) then
  call('HDEL', DIRECT, uuid_of(reference))
else
  write_known({reference}, 0)
end
if keyed(reference) then hand_off() end
return {OK, 1}
