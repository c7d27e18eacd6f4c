-- Take over deliveries whose lease ran out, oldest first, at most 100.
-- KEYS[1] prefix; built: meta workers info lanes lanes:<db> schedule:<pool> flow:<pool>:<flow> singletons:<pool>
--         delayed:<lane number>:<priority> heads behind key:<db>:<tag> leases leased:<lane> attempts direct rules
--         slots:<db>:<limit> buckets refills timers lane_clock parked unrouted worker_actions
--         worker_actions:<digest> free idle:<lane> handoff:<worker> quarantine
-- ARGV    generation, now, worker, lease ms, grace ms, lanes...
-- Returns {code, 1 when there may be more, then for each: {entry, meta, payload or '', deliveries, who lost it}}
-- Flags   allow-oom
local worker, lease_ms, grace_ms = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
if beat_or_stale(lease_ms / 2) then return {STALE_GENERATION} end
local gap = call('HGET', META, 'gap')
if gap and NOW - gap < grace_ms then return {OK, 0} end

local references, readies, lanes, levels, counts, losers, more = {}, {}, {}, {}, {}, {}, 0
for i = 6, #ARGV do
  local lane, room = ARGV[i], 100 - #references
  local late = room > 0
    and call('ZRANGE', leased_key(lane), '-inf', digits(NOW - lease_ms), 'BYSCORE', 'LIMIT', 0, room) or {}
  local leases = late[1] and call('HMGET', LEASES, unpack(late)) or {}
  for at, reference in ipairs(late) do
    local count, ready, level, home, loser = string.match(leases[at] or '', '^%d+ (%d+) (%d+) (%d) (%S+) (.*)$')
    if loser and home == lane and valid(reference) then
      local n = #references + 1
      references[n], readies[n], lanes[n], levels[n] = reference, ready, lane, level
      counts[n], losers[reference] = count + 1, loser
    else
      call('ZREM', leased_key(lane), reference) -- held, but leased nowhere: not written by us, or settled under another lane
      if not valid(reference) then quarantine(reference) end
    end
  end
  if #late == room then more = 1 end
end
local flat, answer = grant(worker, references, readies, lanes, levels, counts), {OK, more}
for at = 1, #flat, 3 do
  local reference = reference_of(flat[at])
  local count = string.match(call('HGET', LEASES, reference), '^%d+ (%d+)')
  answer[#answer + 1] = {flat[at], flat[at + 1], flat[at + 2], tonumber(count), losers[reference]}
end

for _, gone in ipairs(call('ZRANGE', WORKERS, '-inf', '(' .. NOW_TEXT, 'BYSCORE', 'LIMIT', 0, 100)) do
  local waited = read_free(call('HGET', IDLE, gone))
  if waited then stop_waiting(gone, waited.lanes) end
  call('ZREM', WORKERS, gone)
  call('HDEL', INFO, gone)
  call('HDEL', WORKER_ACTIONS, gone)
  call('DEL', handoff_key(gone)) -- what it did not read, its leases run out
end
local full = call('ZRANGE', REFILLS, '-inf', NOW_TEXT, 'BYSCORE', 'LIMIT', 0, 500)
if full[1] then
  call('HDEL', BUCKETS, unpack(full))
  call('ZREM', REFILLS, unpack(full))
end
mend_slots({unpack(ARGV, 6)})
for i = 6, #ARGV do made_ready(ARGV[i]) end -- whatever kept it from those who wait
hand_off()
return answer
