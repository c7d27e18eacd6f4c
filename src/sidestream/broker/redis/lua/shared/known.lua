-- One bit a row says that Redis was given its reference: known:<database>:<id / 32768>, bit id % 32768.
local function known_key(database, chunk) return P .. 'known:' .. hex(database) .. ':' .. string.format('%d', chunk) end

-- Write bit 0 or 1 for every row among the references; answer a table: reference -> its bit before.
local function write_known(references, bit)
  local chunks, before = {}, {}
  for _, reference in ipairs(references) do
    if not is_direct(reference) then
      local id = row_id(reference)
      local name = known_key(string.sub(reference, 2, 9), math.floor(id / 32768))
      local chunk = chunks[name]
      if not chunk then
        chunk = {arguments = {}, references = {}}
        chunks[name] = chunk
      end
      local arguments = chunk.arguments
      local n = #arguments
      arguments[n + 1], arguments[n + 2], arguments[n + 3], arguments[n + 4] = 'SET', 'u1', id % 32768, bit
      chunk.references[#chunk.references + 1] = reference
    end
  end
  for name, chunk in pairs(chunks) do
    local old = call('BITFIELD', name, unpack(chunk.arguments))
    for i, reference in ipairs(chunk.references) do before[reference] = before[reference] or old[i] end
  end
  return before
end
