-- In a new generation: a worker states what it holds. A job that somebody else holds by now is not given back.
-- KEYS[1] prefix; built: meta published:<db>:<chunk> lanes lanes:<db> schedule:<pool> flow:<pool>:<flow>
--         singletons:<pool> delayed:<lane number>:<priority> heads behind key:<db>:<tag> leases leased:<lane>
--         attempts direct rules slots:<db>:<limit> buckets refills timers lane_clock parked unrouted worker_actions
--         worker_actions:<digest> free idle:<lane> handoff:<worker> quarantine
-- ARGV    generation, now, worker, then for each job: reference, lane, priority, ready ms, payload ('' for a row),
--         attempts, crashes, releases
-- Returns {code, {position (from 1), entry}...}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end

-- Out of every waiting place; false when it is handed off already.
local function withdraw(reference, lane, priority)
  if is_leased(reference) then return false end
  unplace(reference, lane, priority)
  local one = keyed(reference) and find_in_line(reference)
  if one then
    call('ZREM', line_key(reference), one.bytes)
    leave_line(one)
  end
  return true
end
-- It runs, so it is the head: whoever took its place goes back, unless that one runs too.
local stated = {} -- in this call: leased at its end
local function run_as_head(one)
  local head = read_head(one.reference)
  if head and head.reference ~= one.reference then
    if stated[head.reference] or is_leased(head.reference) then return end
    unplace(head.reference, head.lane, head.priority)
    join_line(head)
  end
  call('HSET', HEADS, key_field(one.reference), one.bytes)
end

local references, readies, lanes, levels, counts, positions, rows = {}, {}, {}, {}, {}, {}, {}
for i = 4, #ARGV, 8 do
  local reference, lane, level, ready, payload = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local attempts, crashes, releases = tonumber(ARGV[i + 5]), tonumber(ARGV[i + 6]), tonumber(ARGV[i + 7])
  local ours
  if is_direct(reference) then
    -- Its bytes are held: its sender published it again, or it was asserted before. It is no longer ours.
    ours = call('HSETNX', DIRECT, uuid_of(reference), payload) == 1
  else
    ours = withdraw(reference, lane, level)
    rows[#rows + 1] = reference
  end
  if ours then
    if attempts + crashes + releases > 0 then
      write_attempts(reference, attempts, crashes, releases, tonumber(ready))
    end
    if keyed(reference) then run_as_head(keyed_entry(reference, lane, level, tonumber(ready), 0)) end
    lane_number(lane)
    hold_slots(reference, lane)
    stated[reference] = true
    local n = #references + 1
    references[n], readies[n], lanes[n], levels[n], positions[n] = reference, ready, lane, level, (i - 4) / 8 + 1
    counts[n] = 2 -- its worker knows of it, whatever reply to a claim was lost
  end
end
if rows[1] then write_published(rows, 1) end
local flat, answer = grant(ARGV[3], references, readies, lanes, levels, counts), {OK}
for i, position in ipairs(positions) do answer[i + 1] = {position, flat[3 * i - 2]} end
hand_off()
return answer
