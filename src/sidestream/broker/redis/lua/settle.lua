-- Final: forget jobs, clear their known bits, free their keys. Works when Redis is out of memory.
-- KEYS[1] prefix; built: meta published:<db>:<chunk> lanes lanes:<db> schedule:<pool> flow:<pool>:<flow>
--         singletons:<pool> delayed:<lane number>:<priority> heads behind key:<db>:<tag> leases leased:<lane>
--         attempts direct rules slots:<db>:<limit> buckets refills timers lane_clock parked unrouted worker_actions
--         worker_actions:<digest> free idle:<lane> handoff:<worker> quarantine
-- ARGV    generation, now, then for each lane: lane, how many jobs, the entry of each
-- Returns {code, position of each lost lease among all entries (from 1)...}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end

local at, nth, answer, ended = 3, 0, {OK}, {}
while ARGV[at] do
  local lane, count, references, ours = ARGV[at], tonumber(ARGV[at + 1]), {}, {}
  for i = 1, count do references[i] = sub(ARGV[at + 1 + i], 17) end
  local leases = call('HMGET', LEASES, unpack(references))
  for i = 1, count do
    if holds(leases[i], ARGV[at + 1 + i]) then ours[#ours + 1] = references[i] else answer[#answer + 1] = nth + i end
  end
  if ours[1] then
    call('HDEL', LEASES, unpack(ours))
    call('ZREM', leased_key(lane), unpack(ours))
    local rules = rules_of(lane)
    if rules and rules.limited then
      for _, reference in ipairs(ours) do
        if free_slots(reference, lane) then ended[1] = true end
      end
    end
    if forget(ours) then ended[1] = true end
  end
  nth, at = nth + count, at + 2 + count
end
if ended[1] then hand_off() end
return answer
