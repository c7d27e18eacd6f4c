-- Keep and count bytes in a worker's list that Sidestream did not write.
-- KEYS[1] prefix; builds meta quarantine
-- ARGV    generation, now, then what was found
-- Returns {code}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end
for i = 3, #ARGV do quarantine(ARGV[i]) end
return {OK}
