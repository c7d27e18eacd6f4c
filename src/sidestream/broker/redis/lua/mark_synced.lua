-- State that all pending rows of a database were published in this generation.
-- KEYS[1] prefix; built: meta lanes lanes:<db> schedule:<pool> flow:<pool>:<flow> singletons:<pool> delayed:<lane
--         number>:<priority> heads behind key:<db>:<tag> leases leased:<lane> attempts direct rules
--         slots:<db>:<limit> buckets refills timers turns parked unrouted worker_actions worker_actions:<digest>
--         free idle:<lane> handoff:<worker> quarantine
-- ARGV    generation, now, database (16 hex digits)
-- Returns {code}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end
call('HSET', META, 'synced:' .. ARGV[3], 1)
call('HDEL', META, 'sweep:' .. ARGV[3])
call('ZADD', TIMERS, NOW_TEXT, 's' .. ARGV[3]) -- what waited for it may go on
all_made_ready(ARGV[3])
serve_waiting()
return {OK}
