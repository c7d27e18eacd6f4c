-- Return whether a worker is announced now, by the server's clock.
-- KEYS[1] prefix; builds meta workers
-- ARGV    generation, now, worker
-- Returns {code, 1 or 0}
-- Flags   no-writes
if stale_generation() then return {STALE_GENERATION} end
local until_ms = call('ZSCORE', WORKERS, ARGV[3])
return {OK, until_ms and tonumber(until_ms) >= NOW and 1 or 0}
