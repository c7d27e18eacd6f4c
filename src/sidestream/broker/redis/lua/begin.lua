-- Begin a generation if there is none; the first caller wins. Its number is the server's time in microseconds.
-- KEYS[1] prefix; builds meta
-- ARGV    none used (generation and now as everywhere)
-- Returns {code, generation number}
-- Flags   none
local time = call('TIME')
local number = digits(time[1] * 1000000 + time[2])
-- Tokens start from this number, so that no lease of an earlier generation is valid in this one.
if call('HSETNX', META, 'gen', number) == 1 then call('HSET', META, 'token', number, 'format', FORMAT) end
return {OK, call('HGET', META, 'gen')}
