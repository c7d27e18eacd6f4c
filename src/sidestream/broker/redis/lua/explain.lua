-- Explain where one job is and what it waits for.
-- KEYS[1] prefix; builds meta JOBS
-- ARGV    generation, now, reference, lane, priority
-- Returns {code, place (places.lua), scope, until ms, rank, worker, reference of each holder (at most ten)...}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end
local reference, lane, hint = ARGV[3], ARGV[4], ARGV[5]
local found = find(reference, lane, hint)
local _, priority, pool = find_place(reference, lane, hint)
local answer = {OK, found, '', 0, 0, ''}
if found == LEASED then
  answer[6] = string.match(call('HGET', LEASES, reference), '^%d+ %d+ %d+ %d %S+ (.*)$') or ''
elseif found == BEHIND_KEY then
  local head = read_head(reference)
  answer[7] = head and head.reference or nil
elseif found == DELAYED then
  answer[4] = tonumber(call('ZSCORE', delayed_key(lane, priority), reference))
elseif found == READY then
  local rules, queue = rules_of(lane), queue_of(lane)
  answer[5] = call('ZRANK', flow_key(pool, flow_of(reference, priority)), reference) or 0 -- a singleton has no sorted set
  if rules and rules.queues[queue] then
    answer[2], answer[3] = PAUSED, 'queue'
  elseif rules and rules.groups[group_of(reference)] then
    answer[2], answer[3] = PAUSED, 'group'
  elseif rules and rules.limited then
    -- A full limit of the database or the queue parks no job: the whole lane waits.
    local list, database = {}, database_of(lane)
    for _, limit in ipairs({{LIMIT.GLOBAL, rules.everything}, {LIMIT.QUEUE .. queue, rules.by_queue[queue]}}) do
      if limit[2] then list[#list + 1], list[#list + 2] = limit[1], limit[2] end
    end
    local name, full, at = closed(database, list)
    if name then
      answer[2], answer[3], answer[4] = LIMITED, name == LIMIT.GLOBAL and 'global' or 'queue', at or 0
      for _, holder in ipairs(full and call('SRANDMEMBER', slots_key(database, name), 10) or {}) do
        answer[#answer + 1] = holder
      end
    end
  end
elseif found == PAUSED then
  answer[3] = sub(pool, 19, 19) == PAUSE.ACTION and 'action' or 'action of group'
elseif found == LIMITED then
  local name = sub(pool, 19)
  answer[3] = kind_of(name) == LIMIT.ACTION and 'action' or 'key'
  answer[4] = tonumber(call('ZSCORE', TIMERS, pool) or 0)
  local holders = call('SRANDMEMBER', slots_key(database_of(lane), name), 10)
  for _, holder in ipairs(holders) do answer[#answer + 1] = holder end
end
return answer
