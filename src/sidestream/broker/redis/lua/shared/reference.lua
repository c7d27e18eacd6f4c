-- The fields of a packed reference (sidestream/job/reference.py): version, database, id or uuid, limit (versions 3 and
-- 4), action, group, key tag. Fields after the limit have fixed positions from the end.
local NO_KEY = '\0\0\0\0\0\0\0\0'

-- Lengths by version: a row, a direct job, a row with a limit key, a direct job with a limit key.
local SIZES = {37, 45, 49, 57}
local function valid(reference) return #reference == SIZES[byte(reference, 1)] end
local function is_direct(reference) return byte(reference, 1) % 2 == 0 end
local function action_of(reference) return sub(reference, -20, -17) end
local function group_of(reference) return sub(reference, -16, -9) end
-- Rule (4 bytes) and value (8 bytes) of the limit key, or nil.
local function limit_of(reference) return byte(reference, 1) > 2 and sub(reference, -32, -21) or nil end
local function uuid_of(reference) return sub(reference, 10, 25) end
local function row_id(reference) return struct.unpack('>I8', reference, 10) end
local function keyed(reference) return sub(reference, -8) ~= NO_KEY end

-- Format templates by length, because hex() runs several times per keyed job. They are built on first use: the string
-- library does not exist while this library is loaded.
local hex
do
local templates = {}
function hex(bytes)
  local template = templates[#bytes]
  if not template then
    template = string.rep('%02x', #bytes)
    templates[#bytes] = template
  end
  return string.format(template, byte(bytes, 1, #bytes))
end
end
local function unhex(text)
  return (string.gsub(text, '%x%x', function(two) return string.char(tonumber(two, 16)) end))
end

-- Keep foreign or truncated bytes that were found where a reference should be (the last 1,000), and count them.
local function quarantine(bytes)
  call('LPUSH', QUARANTINE, bytes)
  call('LTRIM', QUARANTINE, 0, 999)
  call('HINCRBY', META, 'quarantine', 1)
end
