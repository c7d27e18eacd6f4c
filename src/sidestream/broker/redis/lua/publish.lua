-- Make jobs claimable. Idempotent: a row whose published bit is set, or a direct job whose bytes are held, is skipped.
-- Refused as a whole when Redis is out of memory (no allow-oom flag).
-- KEYS[1] prefix; builds meta failed published:<db>:<chunk> JOBS
-- ARGV    generation, now, force (1: also publish rows whose bit is set, unless they have a place), then for each lane:
--         lane, how many jobs, and for each job: reference, priority, due ms (0: now), mode, payload ('' for a row).
--         mode: new; attempted (it keeps its place in the order of its key while it is delayed); edited (it is removed
--         from its place and placed again); edited_attempted (both); withdrawn (its row ended: it is discarded)
-- Returns {code, how many were new}
-- Flags   none
if stale_generation() then return {STALE_GENERATION} end

local WORDS = 5 -- per job
local alone, direct_handoff = #ARGV == 5 + WORDS, nil -- a single job may be handed off without being placed
local force, count, failed = ARGV[3] == '1', 0, call('EXISTS', FAILED) == 1
local bits, held, TAKEN, GONE = {}, {}, 2, 3 -- besides the bits 0 and 1: published, or discarded, in this call
local freed = false

-- Direct jobs first: one command writes all their bytes, except those that are held already.
local uuids, payloads, rows = {}, {}, {}
local at = 4
while ARGV[at] do
  local last = at + 1 + WORDS * ARGV[at + 1]
  for i = at + 2, last, WORDS do
    local reference = ARGV[i]
    if is_direct(reference) then uuids[#uuids + 1] = uuid_of(reference) else rows[#rows + 1] = reference end
  end
  at = last + 1
end
if uuids[1] then
  local bytes = call('HMGET', DIRECT, unpack(uuids))
  local ended = failed and call('HMGET', FAILED, unpack(uuids))
  for i, uuid in ipairs(uuids) do held[uuid] = bytes[i] or (ended and ended[i]) end
end
if rows[1] then bits = write_published(rows, 1) end

-- Returns whether a job is to be placed. An edited job keeps its counts and gets the first-ready time `ready`.
local function is_new(reference, lane, priority, payload, edited, ready)
  if is_direct(reference) then
    local uuid = uuid_of(reference)
    if held[uuid] then return false end
    held[uuid] = true
    payloads[#payloads + 1] = uuid
    payloads[#payloads + 1] = payload
    return true
  end
  local before = bits[reference]
  bits[reference] = TAKEN
  if before == GONE then
    write_published({reference}, 1)
    before = 0
  end
  if edited and before ~= 0 then
    if is_leased(reference) then return false end -- its worker reads the row
    local attempts, crashes, releases = read_attempts(reference)
    remove_waiting(reference, lane, priority)
    if attempts + crashes + releases > 0 then write_attempts(reference, attempts, crashes, releases, ready) end
    return true
  end
  return before == 0 or (before == 1 and force and find(reference, lane, priority) == NOWHERE)
end
local function withdraw(reference, lane, priority)
  if is_leased(reference) then return end -- its worker reads the row
  if remove_waiting(reference, lane, priority) and keyed(reference) then freed = true end
  write_published({reference}, 0)
  bits[reference] = GONE
end
at = 4
while ARGV[at] do
  local lane, last, flow_jobs, delayed = ARGV[at], at + 1 + WORDS * ARGV[at + 1], {}, {}
  local flow, jobs = nil, nil
  local function place_all()
    for name, words in pairs(flow_jobs) do put(ready_pool(lane), name, words) end
    if next(flow_jobs) then made_ready(lane) end
    for priority, words in pairs(delayed) do call('ZADD', delayed_key(lane, priority), unpack(words)) end
    flow_jobs, delayed, flow = {}, {}, nil
  end
  for i = at + 2, last, WORDS do
    local reference, priority, due, mode = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    local edited, withdrawn = mode == 'edited' or mode == 'edited_attempted', mode == 'withdrawn'
    local attempted = mode == 'attempted' or mode == 'edited_attempted'
    -- The job may be among those that are not placed yet, and its key may pass on: place them in order.
    if edited or withdrawn then place_all() end
    due = due ~= '0' and tonumber(due) or 0
    local ready = due > 0 and due or NOW
    if withdrawn then
      withdraw(reference, lane, priority)
    elseif is_new(reference, lane, priority, ARGV[i + 4], edited, ready) then
      count = count + 1
      if due > NOW and not (keyed(reference) and attempted) then
        local words = delayed[priority] or {}
        delayed[priority] = words
        words[#words + 1] = digits(due)
        words[#words + 1] = reference
      elseif keyed(reference) then
        if flow then place_all() end -- it may move the head of its key: place them in order
        enqueue_keyed(keyed_entry(reference, lane, priority, ready, due))
      else
        local name = priority .. sub(reference, -16, -9)
        if name ~= flow then
          flow, jobs = name, flow_jobs[name] or {}
          flow_jobs[name] = jobs
        end
        local n = #jobs
        if alone and due == 0 then direct_handoff = {reference, lane, priority} end
        jobs[n + 1], jobs[n + 2] = due > 0 and digits(ready) or NOW_TEXT, reference
      end
    end
  end
  if not direct_handoff then place_all() end
  lane_number(lane)
  at = last + 1
end
if payloads[1] then call('HSET', DIRECT, unpack(payloads)) end
if direct_handoff then
  local reference, lane, priority = unpack(direct_handoff)
  if hand_off_directly(reference, lane, priority) then return {OK, count} end
  place(reference, lane, priority, NOW, 0)
end
if count > 0 or freed then hand_off() end
return {OK, count}
