-- Forget dead direct jobs: their bytes and their errors. Works when Redis is out of memory.
-- KEYS[1] prefix; built: meta dead
-- ARGV    generation, now, uuid (16 bytes) of each
-- Returns {code, how many there were}
-- Flags   allow-oom
if moved() then return {MOVED} end
return {OK, call('HDEL', DEAD, unpack(ARGV, 3))}
