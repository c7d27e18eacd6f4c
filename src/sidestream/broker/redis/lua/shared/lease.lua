-- leases: reference -> "<token> <deliveries> <ready_ms> <priority> <lane> <worker>"; leased:<lane>: reference -> ms of its last
-- claim or renewal. A token (16 digits) is never given out twice, so reference and token together are the proof of who
-- holds what; whoever takes a delivery over gives it a new one. An entry, as the outside knows it: token .. reference.
local function new_token()
  return string.format('%016d', call('HINCRBY', META, 'token', 1))
end
local function reference_of(entry) return sub(entry, 17) end
local function holds(lease, entry) return lease and sub(lease, 1, 16) == sub(entry, 1, 16) end
-- Its lane; the priority that it goes back to.
local function lane_of(lease) return string.match(lease, '^%d+ %d+ %d+ %d (%S+) ') end
local function priority_of(lease) return string.match(lease, '^%d+ %d+ %d+ (%d) ') end

-- The lease ends; what becomes of the job is the caller's to say. Answers whether a limit may let others in now.
local function drop(reference, lane)
  call('HDEL', LEASES, reference)
  call('ZREM', leased_key(lane), reference)
  return free_slots(reference, lane)
end

-- Give references (with ready times, lanes, priorities, delivery counts or nil for the first) to a worker.
-- Answers flat: entry, meta "<ready_ms> <priority> <lane>[ <attempts> <crashes> <releases>]", payload or '' for each.
local function grant(worker, references, readies, lanes, levels, counts)
  local flat, leases, held, uuids, nth = {}, {}, {}, {}, {}
  if not references[1] then return flat end
  local token, n, m = new_token(), 0, 0
  for i = 1, #references do
    local reference = references[i]
    if is_direct(reference) then
      uuids[#uuids + 1] = uuid_of(reference)
      nth[i] = #uuids
    end
  end
  local payloads = uuids[1] and call('HMGET', DIRECT, unpack(uuids))
  local tries = call('EXISTS', ATTEMPTS) == 1 and call('HMGET', ATTEMPTS, unpack(references))
  local first, by, mine_at, of = token .. ' 1 ', ' ' .. worker, 0, nil
  local mine -- luacheck: ignore 331 (it is in held)
  for i = 1, #references do
    local reference, lane = references[i], lanes[i]
    local payload = nth[i] and payloads[nth[i]]
    if nth[i] and not payload then
      quarantine(reference) -- its bytes are gone: nobody could run it
      drop(reference, lane)
      if keyed(reference) then free_key(reference) end
    else
      local meta = readies[i] .. ' ' .. levels[i] .. ' ' .. lane
      leases[m + 1] = reference
      leases[m + 2] = (counts and token .. ' ' .. counts[i] .. ' ' or first) .. meta .. by
      m = m + 2
      if lane ~= of then
        mine, of = held[lane] or {}, lane
        held[lane], mine_at = mine, #mine
      end
      mine[mine_at + 1], mine[mine_at + 2] = NOW_TEXT, reference
      mine_at = mine_at + 2
      if tries and tries[i] then meta = meta .. ' ' .. string.match(tries[i], '^%d+ %d+ %d+') end
      flat[n + 1], flat[n + 2], flat[n + 3] = token .. reference, meta, payload or ''
      n = n + 3
    end
  end
  if leases[1] then call('HSET', LEASES, unpack(leases)) end
  for lane, words in pairs(held) do call('ZADD', leased_key(lane), unpack(words)) end
  return flat
end
