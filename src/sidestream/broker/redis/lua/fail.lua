-- End a direct job as dead: its bytes and its error are kept. (A row is only forgotten: its row says that it is dead.)
-- KEYS[1] prefix; built: meta failed published:<db>:<chunk> lanes lanes:<db> schedule:<pool> flow:<pool>:<flow>
--         singletons:<pool> delayed:<lane number>:<priority> heads behind key:<db>:<tag> leases leased:<lane>
--         attempts direct rules slots:<db>:<limit> buckets refills timers lane_clock parked unrouted worker_actions
--         worker_actions:<digest> free idle:<lane> handoff:<worker> quarantine
-- ARGV    generation, now, entry, lane, error
-- Returns {code, 1, or 0 when the lease was lost}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end

local entry, lane = ARGV[3], ARGV[4]
local reference = reference_of(entry)
local lease = call('HGET', LEASES, reference)
if not holds(lease, entry) then return {OK, 0} end
if is_direct(reference) then
  local attempts, crashes = read_attempts(reference)
  local uuid = uuid_of(reference)
  call('HSET', FAILED, uuid, cmsgpack.pack({
    reference = reference, lane = lane, error = ARGV[5], at = NOW, attempts = attempts, crashes = crashes,
    priority = priority_of(lease), payload = call('HGET', DIRECT, uuid) or '',
  }))
end
local freed = drop(reference, lane)
if forget({reference}) or freed then hand_off() end
return {OK, 1}
