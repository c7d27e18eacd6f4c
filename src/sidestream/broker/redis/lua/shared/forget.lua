-- Jobs ended: remove their attempts, their bytes and their published bits, and pass their keys on. Returns whether a job
-- had a key.
local function forget(references)
  local uuids, rows, passing = {}, {}, {}
  for i = 1, #references do
    local reference = references[i]
    if sub(reference, -8) ~= NO_KEY then passing[#passing + 1] = reference end
    if is_direct(reference) then uuids[#uuids + 1] = sub(reference, 10, 25) else rows[#rows + 1] = reference end
  end
  if call('EXISTS', ATTEMPTS) == 1 then call('HDEL', ATTEMPTS, unpack(references)) end
  if uuids[1] then call('HDEL', DIRECT, unpack(uuids)) end
  if rows[1] then write_published(rows, 0) end
  for _, reference in ipairs(passing) do pass_key_on(reference) end
  return passing[1] ~= nil
end
