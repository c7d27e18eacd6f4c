-- In a new generation, a worker states which jobs it holds. A job that another worker holds by now is refused.
-- KEYS[1] prefix; builds meta published:<db>:<chunk> JOBS
-- ARGV    generation, now, worker, then for each job: reference, lane, priority, ready ms, payload ('' for a row),
--         attempts, crashes, releases
-- Returns {code, {position (from 1), entry}...}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end

-- Remove a job from its waiting place; false when it is leased already.
local function take_from_place(reference, lane, priority)
  if is_leased(reference) then return false end
  unplace(reference, lane, priority)
  local behind = keyed(reference) and find_behind(reference)
  if behind then remove_behind(behind) end
  return true
end
-- A running job is the head of its key: a job that replaced it goes behind it, unless that one runs too.
local reasserted = {} -- in this call; they are leased at its end
local function run_as_head(job)
  local head = read_head(job.reference)
  if head and head.reference ~= job.reference then
    if reasserted[head.reference] or is_leased(head.reference) then return end
    unplace(head.reference, head.lane, head.priority)
    enqueue_behind(head)
  end
  call('HSET', HEADS, key_field(job.reference), job.bytes)
end

local references, ready_times, lanes, priorities, deliveries, positions, rows = {}, {}, {}, {}, {}, {}, {}
for i = 4, #ARGV, 8 do
  local reference, lane, priority, ready, payload = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local attempts, crashes, releases = tonumber(ARGV[i + 5]), tonumber(ARGV[i + 6]), tonumber(ARGV[i + 7])
  local ours
  if is_direct(reference) then
    -- If the bytes are held, its sender published it again, or it was reasserted before: it is no longer ours.
    ours = call('HSETNX', DIRECT, uuid_of(reference), payload) == 1
  else
    ours = take_from_place(reference, lane, priority)
    rows[#rows + 1] = reference
  end
  if ours then
    if attempts + crashes + releases > 0 then
      write_attempts(reference, attempts, crashes, releases, tonumber(ready))
    end
    if keyed(reference) then run_as_head(keyed_entry(reference, lane, priority, tonumber(ready), 0)) end
    lane_number(lane)
    hold_slots(reference, lane)
    reasserted[reference] = true
    local n = #references + 1
    references[n], ready_times[n], lanes[n], priorities[n] = reference, ready, lane, priority
    positions[n] = (i - 4) / 8 + 1
    deliveries[n] = 2 -- above 1: its worker knows of it, so a lost reply to a claim does not return it
  end
end
if rows[1] then write_published(rows, 1) end
local granted, answer = grant(ARGV[3], references, ready_times, lanes, priorities, deliveries), {OK}
for i, position in ipairs(positions) do answer[i + 1] = {position, granted[3 * i - 2]} end
hand_off()
return answer
