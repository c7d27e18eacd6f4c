-- Make failed direct jobs pending and ready, with their counts reset. If the bytes of a job are held again, it is only
-- removed from the failed jobs.
-- KEYS[1] prefix; builds meta failed JOBS
-- ARGV    generation, now, uuid (16 bytes) of each
-- Returns {code, how many are pending again}
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
