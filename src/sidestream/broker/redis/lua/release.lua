-- Return one job to its old place, or delay it, or place it behind its key.
-- KEYS[1] prefix; builds meta JOBS
-- ARGV    generation, now, entry, lane, ready ms,
--         then the fields of job/outcome.py's Release: delay_ms ('' grows with the releases),
--         blocked_by (the pending job of its key that comes first, or ''),
--         charge_attempt, charge_crash, count, unstarted (1 or 0)
-- Returns {code, releases since it was last started, or -1 when the lease was lost}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end

local entry, lane, ready, delay_ms, blocked_by = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local charge_attempt, charge_crash, count, unstarted = ARGV[8] == '1', ARGV[9] == '1', ARGV[10] == '1', ARGV[11] == '1'
local blocked = blocked_by ~= ''
local reference = reference_of(entry)
local lease = call('HGET', LEASES, reference)
if not holds(lease, entry) then return {OK, -1} end
local priority = priority_of(lease)
end_lease(reference, lane)

local attempts, crashes, releases = read_attempts(reference)
if charge_attempt or charge_crash then
  releases = 0
  if is_direct(reference) then
    attempts = attempts + 1
    if charge_crash then crashes = crashes + 1 end
  end
elseif count then
  releases = releases + 1
end

if not delay_ms or (blocked and delay_ms == 0) then
  delay_ms = math.min(30000, 50 * 2 ^ math.min(math.max(releases - 1, 0), 10))
end
if attempts + crashes + releases + delay_ms > 0 then
  write_attempts(reference, attempts, crashes, releases, ready)
else
  call('HDEL', ATTEMPTS, reference)
end

if not keyed(reference) then
  place(reference, lane, priority, ready, delay_ms == 0 and 0 or NOW + delay_ms)
elseif unstarted and delay_ms > 0 then
  place(reference, lane, priority, ready, NOW + delay_ms)
  pass_key_on(reference)
else
  -- A blocked job is due by its row: as soon as the job before it arrives, it is replaced as head and loses the delay.
  local due = (blocked or delay_ms == 0) and 0 or NOW + delay_ms
  requeue_keyed(keyed_entry(reference, lane, priority, ready, due), NOW + delay_ms)
end
hand_off()
return {OK, releases}
