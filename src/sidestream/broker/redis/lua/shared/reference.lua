-- What a packed reference says (sidestream/job/reference.py): version, database, id or uuid, limit (versions 3 and 4),
-- action, group, key tag. What follows the limit is found from the end.
local NO_KEY = '\0\0\0\0\0\0\0\0'

-- Lengths by version: a row, a direct job, and the same with a limit key.
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

-- Of a database or a tag, in one call of format: a keyed job asks for it several times a call. The forms are made when they
-- are first needed, because there is no string library while ours is loaded.
local HEX = {}
local function hex(bytes)
  local form = HEX[#bytes]
  if not form then
    form = string.rep('%02x', #bytes)
    HEX[#bytes] = form
  end
  return string.format(form, byte(bytes, 1, #bytes))
end
local function unhex(text)
  return (string.gsub(text, '%x%x', function(two) return string.char(tonumber(two, 16)) end))
end

-- Foreign or truncated bytes found where a reference should be are put aside, bounded, and counted.
local function quarantine(bytes)
  call('LPUSH', QUARANTINE, bytes)
  call('LTRIM', QUARANTINE, 0, 999)
  call('HINCRBY', META, 'quarantine', 1)
end
