-- Open dead direct jobs again, ready now, their failures forgiven. One whose bytes are held again is only forgotten as dead.
-- KEYS[1] prefix; built: meta dead lanes lanes:<db> ring:<pool> bin:<pool>:<seat> ones:<pool> delayed:<lane number>:<priority>
--         heads behind key:<db>:<tag> leases held:<lane> tries direct rules slots:<db>:<limit> buckets full wakes
--         turns parked unknown knows knows:<digest> free idle:<lane> hand:<consumer> strange
-- ARGV    generation, now, uuid (16 bytes) of each
-- Returns {code, how many are open again}
-- Flags   none
if moved() then return {MOVED} end
local count = 0
for i = 3, #ARGV do
  local packed = call('HGET', DEAD, ARGV[i])
  local job = packed and cmsgpack.unpack(packed)
  if job and valid(job.reference) then
    call('HDEL', DEAD, ARGV[i])
    if call('HSETNX', DIRECT, ARGV[i], job.payload) == 1 then
      local reference, priority = job.reference, job.priority or '5'
      if keyed(reference) then
        stand(stander(reference, job.lane, priority, NOW, 0))
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
