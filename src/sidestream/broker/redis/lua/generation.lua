-- Which life of the contents this is.
-- KEYS[1] prefix; built: meta
-- ARGV    none used (generation and now as everywhere)
-- Returns {code, generation number ('0': none was begun), 'built:<db>'...}
-- Flags   no-writes
local answer = {OK, call('HGET', META, 'gen') or '0'}
for _, field in ipairs(call('HKEYS', META)) do
  if sub(field, 1, 6) == 'built:' then answer[#answer + 1] = sub(field, 7) end
end
return answer
