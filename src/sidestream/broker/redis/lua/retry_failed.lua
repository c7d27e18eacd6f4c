-- Open failed direct jobs again, ready now, their failures forgiven. One whose bytes are held again is only forgotten as dead.
-- KEYS[1] prefix; built: meta failed lanes lanes:<db> schedule:<pool> flow:<pool>:<flow> singletons:<pool>
--         delayed:<lane number>:<priority> heads behind key:<db>:<tag> leases leased:<lane> attempts direct rules
--         slots:<db>:<limit> buckets refills timers lane_clock parked unrouted worker_actions
--         worker_actions:<digest> free idle:<lane> handoff:<worker> quarantine
-- ARGV    generation, now, uuid (16 bytes) of each
-- Returns {code, how many are open again}
-- Flags   none
if stale_generation() then return {STALE_GENERATION} end
local count = 0
for i = 3, #ARGV do
  local packed = call('HGET', FAILED, ARGV[i])
  local job = packed and cmsgpack.unpack(packed)
  if job and valid(job.reference) then
    call('HDEL', FAILED, ARGV[i])
    if call('HSETNX', DIRECT, ARGV[i], job.payload) == 1 then
      local reference, priority = job.reference, job.priority or '5'
      if keyed(reference) then
        enqueue_keyed(keyed_entry(reference, job.lane, priority, NOW, 0))
      else
        place(reference, job.lane, priority, NOW, 0)
      end
      lane_number(job.lane)
      count = count + 1
    end
  end
end
if count > 0 then hand_off() end
return {OK, count}
