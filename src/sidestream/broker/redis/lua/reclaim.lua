-- Take over jobs whose leases expired, oldest first, at most 100. Also removes expired workers and full buckets.
-- KEYS[1] prefix; builds meta workers info JOBS
-- ARGV    generation, now, worker, lease ms, grace ms, lanes...
-- Returns {code, 1 when there may be more, then for each: {entry, meta, payload or '', deliveries, the worker that lost it}}
-- Flags   allow-oom
local worker, lease_ms, grace_ms = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
if heartbeat_or_stale(lease_ms / 2) then return {STALE_GENERATION} end
local gap = call('HGET', META, 'gap')
if gap and NOW - gap < grace_ms then return {OK, 0} end

local references, ready_times, lanes, priorities, deliveries, losers, more = {}, {}, {}, {}, {}, {}, 0
for i = 6, #ARGV do
  local lane, room = ARGV[i], 100 - #references
  local late = room > 0
    and call('ZRANGE', leased_key(lane), '-inf', digits(NOW - lease_ms), 'BYSCORE', 'LIMIT', 0, room) or {}
  local leases = late[1] and call('HMGET', LEASES, unpack(late)) or {}
  for at, reference in ipairs(late) do
    local count, ready, priority, home, loser = string.match(leases[at] or '', '^%d+ (%d+) (%d+) (%d) (%S+) (.*)$')
    if loser and home == lane and valid(reference) then
      local n = #references + 1
      references[n], ready_times[n], lanes[n], priorities[n] = reference, ready, lane, priority
      deliveries[n], losers[reference] = count + 1, loser
    else
      call('ZREM', leased_key(lane), reference) -- no such lease: foreign, or settled under another lane
      if not valid(reference) then quarantine(reference) end
    end
  end
  if #late == room then more = 1 end
end
local granted, answer = grant(worker, references, ready_times, lanes, priorities, deliveries), {OK, more}
for at = 1, #granted, 3 do
  local reference = reference_of(granted[at])
  local count = string.match(call('HGET', LEASES, reference), '^%d+ (%d+)')
  answer[#answer + 1] = {granted[at], granted[at + 1], granted[at + 2], tonumber(count), losers[reference]}
end

for _, gone in ipairs(call('ZRANGE', WORKERS, '-inf', '(' .. NOW_TEXT, 'BYSCORE', 'LIMIT', 0, 100)) do
  local waited = read_idle(call('HGET', IDLE, gone))
  if waited then end_idle(gone, waited.lanes) end
  call('ZREM', WORKERS, gone)
  call('HDEL', INFO, gone)
  call('HDEL', WORKER_ACTIONS, gone)
  call('DEL', handoff_key(gone)) -- unread hand-offs: their leases expire
end
local full = call('ZRANGE', REFILLS, '-inf', NOW_TEXT, 'BYSCORE', 'LIMIT', 0, 500)
if full[1] then
  call('HDEL', BUCKETS, unpack(full))
  call('ZREM', REFILLS, unpack(full))
end
repair_slots({unpack(ARGV, 6)})
for i = 6, #ARGV do made_ready(ARGV[i]) end -- in case a job became claimable without a hand-off
hand_off()
return answer
