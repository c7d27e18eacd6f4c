-- Withdraw an announcement; what was handed to the worker and not read returns to its place.
-- KEYS[1] prefix; builds meta workers info JOBS
-- ARGV    generation, now, worker
-- Returns {code}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end
local worker = ARGV[3]
local waited = read_idle(call('HGET', IDLE, worker))
if waited then end_idle(worker, waited.lanes) end
call('ZREM', WORKERS, worker)
call('HDEL', INFO, worker)
call('HDEL', WORKER_ACTIONS, worker)
local granted = read_handoff(worker)
for at = 1, #granted, 3 do return_handoff(granted[at], granted[at + 1]) end
if granted[1] then hand_off() end
return {OK}
