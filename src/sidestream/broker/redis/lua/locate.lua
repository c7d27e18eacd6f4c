-- Say where rows' references are. Mends a line without its head when it meets one.
-- KEYS[1] prefix; built: meta leases held:<lane> ready:<lane> delayed:<lane> heads behind key:<db>:<tag> strange free
--         hand:<consumer> direct tries
-- ARGV    generation, now, then reference, lane for each
-- Returns {code, 0 nowhere | 1 ready | 2 delayed | 3 behind its key | 4 handed off...}
-- Flags   allow-oom
if moved() then return {MOVED} end

local answer = {OK}
for i = 3, #ARGV, 2 do answer[#answer + 1] = find(ARGV[i], ARGV[i + 1]) end
hand_off()
return answer
