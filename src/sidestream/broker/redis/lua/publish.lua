-- Make jobs claimable. Idempotent: a row whose known bit is set, or a direct job whose bytes are held, is skipped.
-- Refused as a whole when Redis is out of memory (no allow-oom flag above).
-- KEYS[1] prefix; built: meta failed published:<db>:<chunk> lanes lanes:<db> schedule:<pool> flow:<pool>:<flow>
--         singletons:<pool> delayed:<lane number>:<priority> heads behind key:<db>:<tag> leases leased:<lane>
--         attempts direct rules slots:<db>:<limit> buckets refills timers lane_clock parked unrouted worker_actions
--         worker_actions:<digest> free idle:<lane> handoff:<worker> quarantine
-- ARGV    generation, now, force (1: publish known rows too, unless they are found in some place), then for each lane:
--         lane, how many jobs, and for each of them: reference, priority, due ms (0: now; with a leading + it was attempted
--         and keeps its place in its key's line while it waits; with a leading * before that it was edited and is placed
--         anew; with a leading - its row is over and it is discarded where it waits), payload ('' for a row)
-- Returns {code, how many were new}
-- Flags   none
if stale_generation() then return {STALE_GENERATION} end

local alone, straight = #ARGV == 9, nil -- one job, which may not have to wait anywhere
local force, count, failed = ARGV[3] == '1', 0, call('EXISTS', FAILED) == 1
local bits, held, TAKEN, GONE = {}, {}, 2, 3 -- taken, gone: published, discarded in this call already
local freed = false

-- Direct jobs first: their bytes are written in one go, those that are held already are left out.
local uuids, payloads, rows = {}, {}, {}
local at = 4
while ARGV[at] do
  local last = at + 1 + 4 * ARGV[at + 1]
  for i = at + 2, last, 4 do
    local reference = ARGV[i]
    if is_direct(reference) then uuids[#uuids + 1] = uuid_of(reference) else rows[#rows + 1] = reference end
  end
  at = last + 1
end
if uuids[1] then
  local bytes = call('HMGET', DIRECT, unpack(uuids))
  local dead = failed and call('HMGET', FAILED, unpack(uuids))
  for i, uuid in ipairs(uuids) do held[uuid] = bytes[i] or (dead and dead[i]) end
end
if rows[1] then bits = write_published(rows, 1) end

-- `ready`: the first-ready time of one that is placed anew; it keeps its counts.
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
    if is_leased(reference) then return false end -- its worker looks at the row
    local attempts, crashes, releases = read_attempts(reference)
    take_out(reference, lane, priority)
    if attempts + crashes + releases > 0 then write_attempts(reference, attempts, crashes, releases, ready) end
    return true
  end
  return before == 0 or (before == 1 and force and find(reference, lane, priority) == NOWHERE)
end
local function withdraw(reference, lane, priority)
  if is_leased(reference) then return end -- its worker looks at the row
  if take_out(reference, lane, priority) and keyed(reference) then freed = true end
  write_published({reference}, 0)
  bits[reference] = GONE
end
at = 4
while ARGV[at] do
  local lane, last, flow_jobs, later = ARGV[at], at + 1 + 4 * ARGV[at + 1], {}, {}
  local flow, jobs = nil, nil
  local function fill()
    for its, words in pairs(flow_jobs) do put(ready_pool(lane), its, words) end
    if next(flow_jobs) then made_ready(lane) end
    for priority, words in pairs(later) do call('ZADD', delayed_key(lane, priority), unpack(words)) end
    flow_jobs, later, flow = {}, {}, nil
  end
  for i = at + 2, last, 4 do
    local reference, priority, due = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local edited, withdrawn = sub(due, 1, 1) == '*', sub(due, 1, 1) == '-'
    if edited or withdrawn then
      due = sub(due, 2)
      fill() -- it may be among them, and its key may pass on: one after the other
    end
    local attempted = sub(due, 1, 1) == '+'
    due = due ~= '0' and tonumber(due) or 0
    local ready = due > 0 and due or NOW
    if withdrawn then
      withdraw(reference, lane, priority)
    elseif is_new(reference, lane, priority, ARGV[i + 3], edited, ready) then
      count = count + 1
      if due > NOW and not (keyed(reference) and attempted) then
        local words = later[priority] or {}
        later[priority] = words
        words[#words + 1] = digits(due)
        words[#words + 1] = reference
      elseif keyed(reference) then
        if flow then fill() end -- it may move the head of its key: one after the other
        enqueue_keyed(keyed_entry(reference, lane, priority, ready, due))
      else
        local its = priority .. sub(reference, -16, -9)
        if its ~= flow then
          flow, jobs = its, flow_jobs[its] or {}
          flow_jobs[its] = jobs
        end
        local n = #jobs
        if alone and due == 0 then straight = {reference, lane, priority} end
        jobs[n + 1], jobs[n + 2] = due > 0 and digits(ready) or NOW_TEXT, reference
      end
    end
  end
  if not straight then fill() end
  lane_number(lane)
  at = last + 1
end
if payloads[1] then call('HSET', DIRECT, unpack(payloads)) end
if straight and hand_straight(unpack(straight)) then return {OK, count} end
if straight then place(straight[1], straight[2], straight[3], NOW, 0) end
if count > 0 or freed then hand_off() end
return {OK, count}
