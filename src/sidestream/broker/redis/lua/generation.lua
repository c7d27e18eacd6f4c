-- Which life of the contents this is, and of which of these databases all pending rows were published in it.
-- KEYS[1] prefix; built: meta
-- ARGV    none used, now, then databases (16 hex digits each)
-- Returns {code, generation number ('0': none was begun), its format ('': none is named), the format that is known here,
--         1 or 0 for each database}
-- Flags   no-writes
local answer = {OK, call('HGET', META, 'gen') or '0', call('HGET', META, 'format') or '', FORMAT}
for i = 3, #ARGV do answer[#answer + 1] = call('HEXISTS', META, 'synced:' .. ARGV[i]) end
return answer
