-- Return the places of rows' jobs. Repairs a key without a head when it meets one.
-- KEYS[1] prefix; builds meta JOBS
-- ARGV    generation, now, then reference, lane, priority for each
-- Returns {code, for each: its place (places.lua) and the ms until which it is delayed, or 0...}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end

local answer = {OK}
for i = 3, #ARGV, 3 do
  local reference, lane, hint = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local found, until_ms = find(reference, lane, hint), 0
  if found == DELAYED then
    local _, priority = find_place(reference, lane, hint)
    until_ms = tonumber(call('ZSCORE', delayed_key(lane, priority), reference))
  end
  answer[#answer + 1], answer[#answer + 2] = found, until_ms
end
hand_off()
return answer
