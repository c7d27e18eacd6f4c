-- Return the published bits of one chunk of row ids.
-- KEYS[1] prefix; builds meta published:<db>:<chunk>
-- ARGV    generation, now, database (8 bytes), chunk
-- Returns {code, bitmap}
-- Flags   no-writes
if stale_generation() then return {STALE_GENERATION} end
return {OK, call('GET', published_key(ARGV[3], tonumber(ARGV[4]))) or ''}
