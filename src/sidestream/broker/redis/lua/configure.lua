-- Put rules in force for a database. Recounts the slots from the leases; the claims that follow unpark what may go on.
-- KEYS[1] prefix; builds meta JOBS
-- ARGV    generation, now, database (16 hex digits), version, digest of the bytes, rules (MessagePack)
-- Returns {code, 1, or 0 when newer rules, or these, are in force already}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end
local database, field = ARGV[3], 'rules:' .. ARGV[3]
local stored = call('HGET', META, field)
if stored and tonumber(string.match(stored, '^%d+')) >= tonumber(ARGV[4]) then return {OK, 0} end
-- The rules until now: the sets of their limits are counted anew.
local before = rules_of(database)
call('HSET', META, field, ARGV[4] .. '-' .. ARGV[5])
call('HSET', RULES, database, ARGV[6])
rules_seen[database] = nil
local rules = rules_of(database)

local leases, emptied = call('HGETALL', LEASES), {}
for i = 1, #leases, 2 do
  local reference, lane = leases[i], lane_of(leases[i + 1])
  if lane and database_of(lane) == database and valid(reference) then
    if before and before.limited then
      local list = counted(reference, lane, before)
      for at = 1, #list, 2 do
        if not emptied[list[at]] then
          emptied[list[at]] = true
          call('DEL', slots_key(database, list[at]))
        end
      end
    end
  end
end
for i = 1, #leases, 2 do
  local reference, lane = leases[i], lane_of(leases[i + 1])
  if lane and database_of(lane) == database and valid(reference) then hold_slots(reference, lane) end
end
if before then
  for group in pairs(before.groups) do
    if not rules.groups[group] then call('ZADD', TIMERS, NOW_TEXT, TASK.RESUME_GROUP .. database .. ':' .. group) end
  end
end
call('HDEL', META, 'sweep:' .. database)
call('ZADD', TIMERS, NOW_TEXT, TASK.SWEEP .. database)
all_made_ready(database)
serve_idle()
return {OK, 1}
