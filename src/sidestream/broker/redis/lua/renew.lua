-- Renew the leases that the caller still holds.
-- KEYS[1] prefix; builds meta leases leased:<lane>
-- ARGV    generation, now, half lease ms, then the entry of each lease
-- Returns {code, position of each lost lease (from 1)...}
-- Flags   allow-oom
if heartbeat_or_stale(tonumber(ARGV[3])) then return {STALE_GENERATION} end

local references, answer, held = {}, {OK}, {}
for i = 4, #ARGV do references[i - 3] = reference_of(ARGV[i]) end
for i, lease in ipairs(call('HMGET', LEASES, unpack(references))) do
  if holds(lease, ARGV[i + 3]) then
    local lane = lane_of(lease)
    held[lane] = held[lane] or {}
    table.insert(held[lane], NOW_TEXT)
    table.insert(held[lane], references[i])
  else
    answer[#answer + 1] = i
  end
end
for lane, words in pairs(held) do call('ZADD', leased_key(lane), unpack(words)) end
return answer
