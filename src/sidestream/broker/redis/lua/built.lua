-- State that all open rows of a database were published in this generation.
-- KEYS[1] prefix; built: meta
-- ARGV    generation, now, database (16 hex digits)
-- Returns {code}
-- Flags   none
if moved() then return {MOVED} end
call('HSET', META, 'built:' .. ARGV[3], 1)
return {OK}
