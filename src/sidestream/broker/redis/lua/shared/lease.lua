-- leases: reference -> "<token> <deliveries> <ready_ms> <priority> <lane> <worker>". leased:<lane>: reference -> ms of its
-- last claim or renewal. A token (16 digits) is issued once, and a takeover issues a new one, so token .. reference, called
-- an entry, proves who holds the job.
local function new_token()
  return string.format('%016d', call('HINCRBY', META, 'token', 1))
end
local function reference_of(entry) return sub(entry, 17) end
local function holds(lease, entry) return lease and sub(lease, 1, 16) == sub(entry, 1, 16) end
-- The lane of a lease, and the priority to which the job returns.
local function lane_of(lease) return string.match(lease, '^%d+ %d+ %d+ %d (%S+) ') end
local function priority_of(lease) return string.match(lease, '^%d+ %d+ %d+ (%d) ') end

-- End a lease; the caller decides what becomes of the job. Returns whether a limit may admit other jobs now.
local function end_lease(reference, lane)
  call('HDEL', LEASES, reference)
  call('ZREM', leased_key(lane), reference)
  return free_slots(reference, lane)
end

-- Lease references to a worker, with their ready times, lanes, priorities and delivery counts (nil: 1).
-- Returns entry, meta "<ready_ms> <priority> <lane>[ <attempts> <crashes> <releases>]", payload or '' for each.
local function grant(worker, references, ready_times, lanes, priorities, deliveries)
  local granted, leases, leased, uuids, uuid_at = {}, {}, {}, {}, {}
  if not references[1] then return granted end
  local token, n, m = new_token(), 0, 0
  for i = 1, #references do
    local reference = references[i]
    if is_direct(reference) then
      uuids[#uuids + 1] = uuid_of(reference)
      uuid_at[i] = #uuids
    end
  end
  local payloads = uuids[1] and call('HMGET', DIRECT, unpack(uuids))
  local attempts_of = call('EXISTS', ATTEMPTS) == 1 and call('HMGET', ATTEMPTS, unpack(references))
  local first, by, size, words_lane = token .. ' 1 ', ' ' .. worker, 0, nil
  local words -- luacheck: ignore 331 (it is in leased)
  for i = 1, #references do
    local reference, lane = references[i], lanes[i]
    local payload = uuid_at[i] and payloads[uuid_at[i]]
    if uuid_at[i] and not payload then
      quarantine(reference) -- its bytes are gone, so nobody can run it
      end_lease(reference, lane)
      if keyed(reference) then pass_key_on(reference) end
    else
      local meta = ready_times[i] .. ' ' .. priorities[i] .. ' ' .. lane
      leases[m + 1] = reference
      leases[m + 2] = (deliveries and token .. ' ' .. deliveries[i] .. ' ' or first) .. meta .. by
      m = m + 2
      if lane ~= words_lane then
        words, words_lane = leased[lane] or {}, lane
        leased[lane], size = words, #words
      end
      words[size + 1], words[size + 2] = NOW_TEXT, reference
      size = size + 2
      if attempts_of and attempts_of[i] then meta = meta .. ' ' .. string.match(attempts_of[i], '^%d+ %d+ %d+') end
      granted[n + 1], granted[n + 2], granted[n + 3] = token .. reference, meta, payload or ''
      n = n + 3
    end
  end
  if leases[1] then call('HSET', LEASES, unpack(leases)) end
  for lane, scores in pairs(leased) do call('ZADD', leased_key(lane), unpack(scores)) end
  return granted
end
