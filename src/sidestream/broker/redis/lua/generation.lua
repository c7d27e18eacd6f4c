-- Return the number of the generation, and which of these databases have all pending rows published in it.
-- KEYS[1] prefix; builds meta
-- ARGV    none used, now, then databases (16 hex digits each)
-- Returns {code, generation number ('0': none was begun), its format ('': it names none), the format that this release knows,
--         1 or 0 for each database}
-- Flags   no-writes
local answer = {OK, call('HGET', META, 'gen') or '0', call('HGET', META, 'format') or '', FORMAT}
for i = 3, #ARGV do answer[#answer + 1] = call('HEXISTS', META, 'synced:' .. ARGV[i]) end
return answer
