-- Remove jobs that ended: their leases, published bits and bytes; pass their keys on. Works when Redis is out of memory.
-- KEYS[1] prefix; builds meta published:<db>:<chunk> JOBS
-- ARGV    generation, now, then for each lane: lane, how many jobs, the entry of each
-- Returns {code, position of each lost lease among all entries (from 1)...}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end

local at, position, answer, passed_on = 3, 0, {OK}, false
while ARGV[at] do
  local lane, count, references, ours = ARGV[at], tonumber(ARGV[at + 1]), {}, {}
  for i = 1, count do references[i] = sub(ARGV[at + 1 + i], 17) end
  local leases = call('HMGET', LEASES, unpack(references))
  for i = 1, count do
    if holds(leases[i], ARGV[at + 1 + i]) then
      ours[#ours + 1] = references[i]
    else
      answer[#answer + 1] = position + i
    end
  end
  if ours[1] then
    call('HDEL', LEASES, unpack(ours))
    call('ZREM', leased_key(lane), unpack(ours))
    local rules = rules_of(lane)
    if rules and rules.limited then
      for _, reference in ipairs(ours) do
        if free_slots(reference, lane) then passed_on = true end
      end
    end
    if forget(ours) then passed_on = true end
  end
  position, at = position + count, at + 2 + count
end
if passed_on then hand_off() end
return answer
