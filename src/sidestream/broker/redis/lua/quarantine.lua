-- Bytes in a reader's list that Sidestream did not write: counted, a copy kept.
-- KEYS[1] prefix; built: meta quarantine
-- ARGV    generation, now, then what was found
-- Returns {code}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end
for i = 3, #ARGV do quarantine(ARGV[i]) end
return {OK}
