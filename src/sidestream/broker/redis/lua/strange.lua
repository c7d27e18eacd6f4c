-- Bytes in a reader's list that Sidestream did not write: counted, a copy kept.
-- KEYS[1] prefix; built: meta strange
-- ARGV    generation, now, then what was found
-- Returns {code}
-- Flags   allow-oom
if moved() then return {MOVED} end
for i = 3, #ARGV do put_aside(ARGV[i]) end
return {OK}
