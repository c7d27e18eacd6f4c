-- Hand jobs to a worker: promote what is due, then what was handed to it and not read, then the oldest ready singletons.
-- KEYS[1] prefix; built: meta lanes lanes:<db> schedule:<pool> flow:<pool>:<flow> singletons:<pool> delayed:<lane
--         number>:<priority> heads behind key:<db>:<tag> leases leased:<lane> attempts direct rules
--         slots:<db>:<limit> buckets refills timers turns parked unrouted worker_actions worker_actions:<digest>
--         free idle:<lane> handoff:<worker> quarantine
-- ARGV    generation, now, half lease ms, worker, free, prefetch, wait ms,
--         the last token that the worker received ('': no reply to it was lost), ms since it sent the first lost one, lanes...
-- Returns {code, ms to block for (0: do not), {entry, meta, payload or '' for each}}
-- Flags   allow-oom
if beat_or_stale(tonumber(ARGV[3])) then return {STALE_GENERATION} end

local worker, free, prefetch, wait = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local received, ago = ARGV[8], tonumber(ARGV[9])
local lanes = {unpack(ARGV, 10)}
local waited = read_free(call('HGET', IDLE, worker))
if waited then stop_waiting(worker, waited.lanes) end
local promoted = work_off()
for _, lane in ipairs(lanes) do promoted = promoted + promote(lane) end
promoted = promoted + wake_routed(worker, lanes)

-- What it was granted since then it does not know of: nobody would run it until its lease has run out. Those that were
-- stated anew or reclaimed have a higher count. A thousand at most of what was claimed or renewed since are looked at.
for _, lane in ipairs(received ~= '' and lanes or {}) do
  local since = call('ZRANGE', leased_key(lane), digits(NOW - ago), '+inf', 'BYSCORE', 'LIMIT', 0, 1000)
  local leases = since[1] and call('HMGET', LEASES, unpack(since)) or {}
  for at, reference in ipairs(since) do
    local token, meta, holder = string.match(leases[at] or '', '^(%d+) 1 (%d+ %d %S+) (.*)$')
    if holder == worker and token > received then hand_back(token .. reference, meta) end
  end
end
local flat = read_hand(worker)
while #flat > 3 * free do -- it announced more children than it has now
  hand_back(flat[#flat - 2], flat[#flat - 1])
  for _ = 1, 3 do flat[#flat] = nil end
end
local room = free - #flat / 3
opens_at, met_unknown = nil, false
if room + prefetch > 0 then
  local granted = grant(worker, pick(lanes, room, prefetch, worker))
  if flat[1] then
    for _, word in ipairs(granted) do flat[#flat + 1] = word end
  else
    flat = granted
  end
end
local opens_ms = opens_at -- of our pick: others' follow
if promoted > 0 or met_unknown then hand_off() end
if flat[1] or wait == 0 or free == 0 then return {OK, 0, flat} end

local block = math.min(wait, LONGEST_BLOCK)
for _, lane in ipairs(lanes) do
  local due = next_due(lane)
  if due then block = math.max(1, math.min(block, due - NOW)) end
end
local waking = tonumber(call('ZRANGE', TIMERS, 0, 0, 'WITHSCORES')[2])
if waking then block = math.max(1, math.min(block, waking - NOW)) end
if opens_ms then block = math.max(1, math.min(block, opens_ms - NOW)) end
-- Shorter than the read, so that nothing is handed to a reader that has just given up; what is, its next claim reads.
local till = digits(NOW + block)
call('HSET', IDLE, worker, digits(free) .. ' ' .. till .. '\n' .. table.concat(lanes, '\n'))
for _, lane in ipairs(lanes) do call('ZADD', idle_key(lane), till, worker) end
return {OK, block, flat}
