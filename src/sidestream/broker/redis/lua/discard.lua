-- Remove a waiting reference whose row ended; its known bit goes too, so that a retry by a person publishes it again.
-- KEYS[1] prefix; built: meta published:<db>:<chunk> lanes lanes:<db> schedule:<pool> flow:<pool>:<flow>
--         singletons:<pool> delayed:<lane number>:<priority> heads behind key:<db>:<tag> leases leased:<lane>
--         attempts direct rules slots:<db>:<limit> buckets refills timers lane_clock parked unrouted worker_actions
--         worker_actions:<digest> free idle:<lane> handoff:<worker> quarantine
-- ARGV    generation, now, reference, lane, priority
-- Returns {code, 1, or 0 when it is handed off or nowhere}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end

local reference = ARGV[3]
if not take_out(reference, ARGV[4], ARGV[5]) then return {OK, 0} end
if is_direct(reference) then
  call('HDEL', DIRECT, uuid_of(reference))
else
  write_published({reference}, 0)
end
if keyed(reference) then hand_off() end
return {OK, 1}
