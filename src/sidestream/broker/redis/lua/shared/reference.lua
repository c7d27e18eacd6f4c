-- What a packed reference says (sidestream/job/reference.py): version, database, id or uuid, action, group, key tag.
local NO_KEY = '\0\0\0\0\0\0\0\0'

-- Lengths by version: 33 bytes for a row, 41 for a direct job.
local function valid(reference)
  local size, version = #reference, byte(reference, 1)
  return (size == 33 and version == 1) or (size == 41 and version == 2)
end
local function is_direct(reference) return byte(reference, 1) == 2 end
local function uuid_of(reference) return sub(reference, 10, 25) end
local function row_id(reference) return struct.unpack('>I8', reference, 10) end
local function keyed(reference) return sub(reference, -8) ~= NO_KEY end

-- Of 8 bytes: a database or a key tag.
local HEX = '%02x%02x%02x%02x%02x%02x%02x%02x'
local function hex(bytes) return string.format(HEX, byte(bytes, 1, 8)) end

-- Foreign or truncated bytes found where a reference should be are put aside, bounded, and counted.
local function put_aside(bytes)
  call('LPUSH', STRANGE, bytes)
  call('LTRIM', STRANGE, 0, 999)
  call('HINCRBY', META, 'strange', 1)
end
