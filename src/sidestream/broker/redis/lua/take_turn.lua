-- Give one worker the turn for a task that every worker could do. The last one keeps it until it falls silent.
-- tasks: task -> "<until_ms> <worker>".
-- KEYS[1] prefix; builds meta tasks
-- ARGV    generation, now, task, worker, ms for which no other worker has the turn (0: give it back)
-- Returns {code, 1 when it is the worker's turn, else 0}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end
local task, worker, hold = ARGV[3], ARGV[4], tonumber(ARGV[5])
local until_ms, holder = string.match(call('HGET', TASKS, task) or '', '^(%d+) (.+)$')
if holder and holder ~= worker then
  -- A turn that seems to last longer was taken before the server's clock was set back.
  local left = tonumber(until_ms) - NOW
  if hold == 0 or (left > 0 and left <= math.max(60000, 2 * hold)) then return {OK, 0} end
end
if hold == 0 then
  call('HDEL', TASKS, task)
  return {OK, 0}
end
call('HSET', TASKS, task, digits(NOW + hold) .. ' ' .. worker)
return {OK, 1}
