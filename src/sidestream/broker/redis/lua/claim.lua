-- Lease jobs to a worker: promote due jobs, then take what was handed to it and not read, then the next ready jobs.
-- KEYS[1] prefix; builds meta JOBS
-- ARGV    generation, now, half lease ms, worker, free, prefetch, wait ms, the last token that the worker received ('': no
--         reply was lost), ms since it sent the claim whose reply was lost, lanes...
-- Returns {code, ms to block for (0: do not), {entry, meta, payload or '' for each}}
-- Flags   allow-oom
if heartbeat_or_stale(tonumber(ARGV[3])) then return {STALE_GENERATION} end

local worker, free, prefetch, wait = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local received, ago = ARGV[8], tonumber(ARGV[9])
local lanes = {unpack(ARGV, 10)}
local waited = read_idle(call('HGET', IDLE, worker))
if waited then end_idle(worker, waited.lanes) end
local promoted = run_timers()
for _, lane in ipairs(lanes) do promoted = promoted + promote(lane) end
promoted = promoted + unpark_routed(worker, lanes)

-- The worker does not know the jobs that a lost reply leased to it, so nobody would run them until the leases expire:
-- return them. Reasserted or reclaimed jobs have a higher delivery count. Checks at most 1,000 leases per lane.
for _, lane in ipairs(received ~= '' and lanes or {}) do
  local since = call('ZRANGE', leased_key(lane), digits(NOW - ago), '+inf', 'BYSCORE', 'LIMIT', 0, 1000)
  local leases = since[1] and call('HMGET', LEASES, unpack(since)) or {}
  for at, reference in ipairs(since) do
    local token, meta, holder = string.match(leases[at] or '', '^(%d+) 1 (%d+ %d %S+) (.*)$')
    if holder == worker and token > received then return_handoff(token .. reference, meta) end
  end
end
local granted = read_handoff(worker)
while #granted > 3 * free do -- it announced more free children than it has now
  return_handoff(granted[#granted - 2], granted[#granted - 1])
  for _ = 1, 3 do granted[#granted] = nil end
end
local room = free - #granted / 3
opens_at, met_unrouted = nil, false
if room + prefetch > 0 then
  local more = grant(worker, pick(lanes, room, prefetch, worker))
  if granted[1] then
    for _, word in ipairs(more) do granted[#granted + 1] = word end
  else
    granted = more
  end
end
local opens_ms = opens_at -- of this pick; hand_off below picks for other workers
if promoted > 0 or met_unrouted then hand_off() end
if granted[1] or wait == 0 or free == 0 then return {OK, 0, granted} end

local block = math.min(wait, LONGEST_BLOCK)
for _, lane in ipairs(lanes) do
  local due = next_due(lane)
  -- Not if enough idle workers of the lane wake by then: the first one promotes the job and hands it off.
  if due and due - NOW < block and call('ZCOUNT', idle_key(lane), NOW_TEXT, digits(due)) < MOST_AWAKE then
    block = math.max(1, due - NOW)
  end
end
local waking = tonumber(call('ZRANGE', TIMERS, 0, 0, 'WITHSCORES')[2])
if waking then block = math.max(1, math.min(block, waking - NOW)) end
if opens_ms then block = math.max(1, math.min(block, opens_ms - NOW)) end
-- No longer than the worker's blocking read, so that jobs are not handed to a worker that has just stopped reading. If one
-- is, the worker's next claim returns it.
local until_ms = digits(NOW + block)
call('HSET', IDLE, worker, digits(free) .. ' ' .. until_ms .. '\n' .. table.concat(lanes, '\n'))
for _, lane in ipairs(lanes) do call('ZADD', idle_key(lane), until_ms, worker) end
return {OK, block, granted}
