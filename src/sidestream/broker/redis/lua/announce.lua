-- Tell that a consumer is alive and which lanes it serves. workers: consumer -> "<until_ms>", its lanes on one line, info.
-- KEYS[1] prefix; built: meta workers
-- ARGV    generation, now, consumer, info (JSON), ttl ms, lanes...
-- Returns {code}
-- Flags   allow-oom
if moved() then return {MOVED} end
local lanes = table.concat({unpack(ARGV, 6)}, ' ')
call('HSET', WORKERS, ARGV[3], digits(NOW + ARGV[5]) .. '\n' .. lanes .. '\n' .. ARGV[4])
return {OK}
