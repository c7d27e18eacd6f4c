-- Remove a waiting job whose row ended. Its published bit goes too, so that a retry by a person publishes it again.
-- KEYS[1] prefix; builds meta published:<db>:<chunk> JOBS
-- ARGV    generation, now, reference, lane, priority
-- Returns {code, 1, or 0 when it is leased or nowhere}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end

local reference = ARGV[3]
if not remove_waiting(reference, ARGV[4], ARGV[5]) then return {OK, 0} end
if is_direct(reference) then
  call('HDEL', DIRECT, uuid_of(reference))
else
  write_published({reference}, 0)
end
if keyed(reference) then hand_off() end
return {OK, 1}
