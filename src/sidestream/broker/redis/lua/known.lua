-- The known bits of one chunk of row ids.
-- KEYS[1] prefix; built: meta known:<db>:<chunk>
-- ARGV    generation, now, database (8 bytes), chunk
-- Returns {code, bitmap}
-- Flags   no-writes
if moved() then return {MOVED} end
return {OK, call('GET', known_key(ARGV[3], tonumber(ARGV[4]))) or ''}
