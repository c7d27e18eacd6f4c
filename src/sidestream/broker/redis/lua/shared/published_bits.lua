-- One bit per row says whether its reference is in Redis: published:<db>:<id / 32768>, bit id % 32768.
local function published_key(database, chunk)
  return P .. 'published:' .. hex(database) .. ':' .. string.format('%d', chunk)
end

-- Write `bit` (0 or 1) for every row among the references. Returns reference -> its bit before.
local function write_published(references, bit)
  local chunks, before, chunk, database, number = {}, {}, nil, nil, nil
  for _, reference in ipairs(references) do
    if not is_direct(reference) then
      local id, its_database = row_id(reference), sub(reference, 2, 9)
      local its_number = math.floor(id / 32768)
      if its_number ~= number or its_database ~= database then
        database, number = its_database, its_number
        local name = published_key(database, number)
        chunk = chunks[name] or {arguments = {}, references = {}}
        chunks[name] = chunk
      end
      local arguments, mine = chunk.arguments, chunk.references
      local n = #arguments
      arguments[n + 1], arguments[n + 2], arguments[n + 3], arguments[n + 4] = 'SET', 'u1', id % 32768, bit
      mine[#mine + 1] = reference
    end
  end
  for name, one in pairs(chunks) do
    local old = call('BITFIELD', name, unpack(one.arguments))
    for i, reference in ipairs(one.references) do before[reference] = before[reference] or old[i] end
  end
  return before
end
