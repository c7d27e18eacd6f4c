-- Whether a worker is announced at this moment, by this server's clock.
-- KEYS[1] prefix; built: meta workers
-- ARGV    generation, now, worker
-- Returns {code, 1 or 0}
-- Flags   no-writes
if stale_generation() then return {STALE_GENERATION} end
local till = call('ZSCORE', WORKERS, ARGV[3])
return {OK, till and tonumber(till) >= NOW and 1 or 0}
