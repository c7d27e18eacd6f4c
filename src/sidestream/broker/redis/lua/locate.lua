-- Say where rows' references are. Mends a line without its head when it meets one.
-- KEYS[1] prefix; built: meta lanes lanes:<db> schedule:<pool> flow:<pool>:<flow> singletons:<pool> delayed:<lane
--         number>:<priority> heads behind key:<db>:<tag> leases leased:<lane> attempts direct rules
--         slots:<db>:<limit> buckets refills timers turns parked unrouted worker_actions worker_actions:<digest>
--         free idle:<lane> handoff:<worker> quarantine
-- ARGV    generation, now, then reference, lane, priority for each
-- Returns {code, for each: 0 nowhere | 1 ready | 2 delayed | 3 behind its key | 4 handed off | 5 limited | 6 paused | 7 parked,
--         and the ms until which it is delayed, or 0...}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end

local answer = {OK}
for i = 3, #ARGV, 3 do
  local reference, lane, hint = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local found, till = find(reference, lane, hint), 0
  if found == DELAYED then
    local _, priority = look_for(reference, lane, hint)
    till = tonumber(call('ZSCORE', delayed_key(lane, priority), reference))
  end
  answer[#answer + 1], answer[#answer + 2] = found, till
end
hand_off()
return answer
