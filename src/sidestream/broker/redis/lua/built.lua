-- State that all open rows of a database were published in this generation.
-- KEYS[1] prefix; built: meta lanes lanes:<db> ring:<pool> bin:<pool>:<seat> ones:<pool> delayed:<lane number>:<priority> heads
--         behind key:<db>:<tag> leases held:<lane> tries direct rules slots:<db>:<limit> buckets full wakes turns
--         parked unknown knows knows:<digest> free idle:<lane> hand:<consumer> strange
-- ARGV    generation, now, database (16 hex digits)
-- Returns {code}
-- Flags   allow-oom
if moved() then return {MOVED} end
call('HSET', META, 'built:' .. ARGV[3], 1)
call('HDEL', META, 'sweep:' .. ARGV[3])
call('ZADD', WAKES, NOW_TEXT, 's' .. ARGV[3]) -- what waited for it may go on
all_made_ready(ARGV[3])
serve_waiting()
return {OK}
