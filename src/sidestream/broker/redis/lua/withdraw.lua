-- Take an announcement back; what was handed to the consumer and not read goes back to where it came from.
-- KEYS[1] prefix; built: meta workers lanes ring:<pool> bin:<pool>:<seat> ones:<pool>
--         delayed:<lane number>:<priority> heads behind key:<db>:<tag> leases held:<lane> tries direct rules
--         slots:<db>:<limit> buckets full wakes turns parked unknown knows knows:<digest> free hand:<consumer>
--         strange
-- ARGV    generation, now, consumer
-- Returns {code}
-- Flags   allow-oom
if moved() then return {MOVED} end
call('HDEL', FREE, ARGV[3])
call('HDEL', WORKERS, ARGV[3])
call('HDEL', KNOWS, ARGV[3])
local flat = read_hand(ARGV[3])
for at = 1, #flat, 3 do hand_back(flat[at], flat[at + 1]) end
if flat[1] then hand_off() end
return {OK}
