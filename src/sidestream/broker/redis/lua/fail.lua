-- End a direct job as failed and keep its bytes and its error. (Of a row, only the reference is removed: the row says it.)
-- KEYS[1] prefix; builds meta failed published:<db>:<chunk> JOBS
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
local freed = end_lease(reference, lane)
if forget({reference}) or freed then hand_off() end
return {OK, 1}
