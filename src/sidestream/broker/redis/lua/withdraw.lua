-- Take an announcement back; what was handed to the consumer and not read goes back to where it came from.
-- KEYS[1] prefix; built: meta workers info lanes lanes:<db> ring:<pool> bin:<pool>:<seat> ones:<pool>
--         delayed:<lane number>:<priority> heads behind key:<db>:<tag> leases held:<lane> tries direct rules
--         slots:<db>:<limit> buckets full wakes turns parked unknown knows knows:<digest> free idle:<lane> hand:<consumer>
--         strange
-- ARGV    generation, now, consumer
-- Returns {code}
-- Flags   allow-oom
if moved() then return {MOVED} end
local consumer = ARGV[3]
local waited = read_free(call('HGET', FREE, consumer))
if waited then stop_waiting(consumer, waited.lanes) end
call('ZREM', WORKERS, consumer)
call('HDEL', INFO, consumer)
call('HDEL', KNOWS, consumer)
local flat = read_hand(consumer)
for at = 1, #flat, 3 do hand_back(flat[at], flat[at + 1]) end
if flat[1] then hand_off() end
return {OK}
