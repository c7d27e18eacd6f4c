-- Take over deliveries whose lease ran out, oldest first, at most 100.
-- KEYS[1] prefix; built: meta workers info lanes lanes:<db> ring:<pool> bin:<pool>:<seat> ones:<pool>
--         delayed:<lane number>:<priority> heads behind key:<db>:<tag> leases held:<lane> tries direct rules
--         slots:<db>:<limit> buckets full wakes turns parked unknown knows knows:<digest> free idle:<lane> hand:<consumer>
--         strange
-- ARGV    generation, now, consumer, lease ms, grace ms, lanes...
-- Returns {code, 1 when there may be more, then for each: {entry, meta, payload or '', deliveries, who lost it}}
-- Flags   allow-oom
local consumer, lease_ms, grace_ms = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
if beat_or_moved(lease_ms / 2) then return {MOVED} end
local gap = call('HGET', META, 'gap')
if gap and NOW - gap < grace_ms then return {OK, 0} end

local references, readies, lanes, levels, counts, losers, more = {}, {}, {}, {}, {}, {}, 0
for i = 6, #ARGV do
  local lane, room = ARGV[i], 100 - #references
  local late = room > 0
    and call('ZRANGE', held_key(lane), '-inf', digits(NOW - lease_ms), 'BYSCORE', 'LIMIT', 0, room) or {}
  local leases = late[1] and call('HMGET', LEASES, unpack(late)) or {}
  for at, reference in ipairs(late) do
    local count, ready, level, home, loser = string.match(leases[at] or '', '^%d+ (%d+) (%d+) (%d) (%S+) (.*)$')
    if loser and home == lane and valid(reference) then
      local n = #references + 1
      references[n], readies[n], lanes[n], levels[n] = reference, ready, lane, level
      counts[n], losers[reference] = count + 1, loser
    else
      call('ZREM', held_key(lane), reference) -- held, but leased nowhere: not written by us, or settled under another lane
      if not valid(reference) then put_aside(reference) end
    end
  end
  if #late == room then more = 1 end
end
local flat, answer = grant(consumer, references, readies, lanes, levels, counts), {OK, more}
for at = 1, #flat, 3 do
  local reference = reference_of(flat[at])
  local count = string.match(call('HGET', LEASES, reference), '^%d+ (%d+)')
  answer[#answer + 1] = {flat[at], flat[at + 1], flat[at + 2], tonumber(count), losers[reference]}
end

for _, worker in ipairs(call('ZRANGE', WORKERS, '-inf', '(' .. NOW_TEXT, 'BYSCORE', 'LIMIT', 0, 100)) do
  local waited = read_free(call('HGET', FREE, worker))
  if waited then stop_waiting(worker, waited.lanes) end
  call('ZREM', WORKERS, worker)
  call('HDEL', INFO, worker)
  call('HDEL', KNOWS, worker)
  call('DEL', hand_key(worker)) -- what it did not read, its leases run out
end
local full = call('ZRANGE', FULL, '-inf', NOW_TEXT, 'BYSCORE', 'LIMIT', 0, 500)
if full[1] then
  call('HDEL', BUCKETS, unpack(full))
  call('ZREM', FULL, unpack(full))
end
mend_slots({unpack(ARGV, 6)})
for i = 6, #ARGV do made_ready(ARGV[i]) end -- whatever kept it from those who wait
hand_off()
return answer
