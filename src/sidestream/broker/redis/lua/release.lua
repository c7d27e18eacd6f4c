-- Hand one job back, to its old place, or after a delay, or behind its key.
-- KEYS[1] prefix; built: meta lanes lanes:<db> schedule:<pool> flow:<pool>:<flow> singletons:<pool> delayed:<lane
--         number>:<priority> heads behind key:<db>:<tag> leases leased:<lane> attempts direct rules
--         slots:<db>:<limit> buckets refills timers turns parked unrouted worker_actions worker_actions:<digest>
--         free idle:<lane> handoff:<worker> quarantine
-- ARGV    generation, now, entry, lane, ready ms,
--         delay ms ('' grows with the releases), blocked (1: a pending job of its key stands before it),
--         attempt (1: charge one), crash (1: charge one), count (1: count this release),
--         unstarted (1: not due and never started, so it stands in no line until then)
-- Returns {code, releases since it was last started, or -1 when the lease was lost}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end

local entry, lane, ready, blocked = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[7] == '1'
local reference = reference_of(entry)
local lease = call('HGET', LEASES, reference)
if not holds(lease, entry) then return {OK, -1} end
local priority = priority_of(lease)
drop(reference, lane)

local attempts, crashes, releases = read_attempts(reference)
local crash = ARGV[9] == '1'
if crash or ARGV[8] == '1' then
  releases = 0
  if is_direct(reference) then
    attempts = attempts + 1
    if crash then crashes = crashes + 1 end
  end
elseif ARGV[10] == '1' then
  releases = releases + 1
end

local delay = tonumber(ARGV[6])
if not delay or (blocked and delay == 0) then
  delay = math.min(30000, 50 * 2 ^ math.min(math.max(releases - 1, 0), 10))
end
if attempts + crashes + releases + delay > 0 then
  write_attempts(reference, attempts, crashes, releases, ready)
else
  call('HDEL', ATTEMPTS, reference)
end

if not keyed(reference) then
  place(reference, lane, priority, ready, delay == 0 and 0 or NOW + delay)
elseif ARGV[11] == '1' and delay > 0 then
  place(reference, lane, priority, ready, NOW + delay)
  free_key(reference)
else
  -- Blocked: its row is due, so as soon as the job before it is known here it gives up the head and the delay.
  local due = (blocked or delay == 0) and 0 or NOW + delay
  requeue_keyed(keyed_entry(reference, lane, priority, ready, due), NOW + delay)
end
hand_off()
return {OK, releases}
