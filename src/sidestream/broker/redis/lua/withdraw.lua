-- Take an announcement back; what was handed to the worker and not read goes back to where it came from.
-- KEYS[1] prefix; built: meta workers info lanes lanes:<db> schedule:<pool> flow:<pool>:<flow> singletons:<pool>
--         delayed:<lane number>:<priority> heads behind key:<db>:<tag> leases leased:<lane> attempts direct rules
--         slots:<db>:<limit> buckets refills timers lane_clock parked unrouted worker_actions
--         worker_actions:<digest> free idle:<lane> handoff:<worker> quarantine
-- ARGV    generation, now, worker
-- Returns {code}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end
local worker = ARGV[3]
local waited = read_free(call('HGET', IDLE, worker))
if waited then stop_waiting(worker, waited.lanes) end
call('ZREM', WORKERS, worker)
call('HDEL', INFO, worker)
call('HDEL', WORKER_ACTIONS, worker)
local flat = read_hand(worker)
for at = 1, #flat, 3 do hand_back(flat[at], flat[at + 1]) end
if flat[1] then hand_off() end
return {OK}
