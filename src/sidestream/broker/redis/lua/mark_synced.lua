-- Record that all pending rows of a database are published in this generation.
-- KEYS[1] prefix; builds meta JOBS
-- ARGV    generation, now, database (16 hex digits)
-- Returns {code}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end
call('HSET', META, 'synced:' .. ARGV[3], 1)
call('HDEL', META, 'sweep:' .. ARGV[3])
call('ZADD', TIMERS, NOW_TEXT, TASK.SWEEP .. ARGV[3]) -- jobs that waited for it may go on
all_made_ready(ARGV[3])
serve_idle()
return {OK}
