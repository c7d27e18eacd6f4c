-- Whether a consumer is announced at this moment, by this server's clock.
-- KEYS[1] prefix; built: meta workers
-- ARGV    generation, now, consumer
-- Returns {code, 1 or 0}
-- Flags   no-writes
if moved() then return {MOVED} end
local till = call('ZSCORE', WORKERS, ARGV[3])
return {OK, till and tonumber(till) >= NOW and 1 or 0}
