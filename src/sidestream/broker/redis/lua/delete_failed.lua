-- Delete failed direct jobs: their bytes and their errors. Works when Redis is out of memory.
-- KEYS[1] prefix; builds meta failed
-- ARGV    generation, now, uuid (16 bytes) of each
-- Returns {code, how many there were}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end
return {OK, call('HDEL', FAILED, unpack(ARGV, 3))}
