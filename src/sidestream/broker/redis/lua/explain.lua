-- Say where one reference is and what it waits for.
-- KEYS[1] prefix; built: as locate, and rules slots:<db>:<limit> buckets
-- ARGV    generation, now, reference, lane, priority
-- Returns {code, place (places.lua), scope, until ms, rank, consumer, reference of each holder (at most ten)...}
-- Flags   allow-oom
if moved() then return {MOVED} end
local reference, lane, hint = ARGV[3], ARGV[4], ARGV[5]
local found = find(reference, lane, hint)
local _, priority, pool = look_for(reference, lane, hint)
local answer = {OK, found, '', 0, 0, ''}
if found == HANDED_OFF then
  answer[6] = string.match(call('HGET', LEASES, reference), '^%d+ %d+ %d+ %d %S+ (.*)$') or ''
elseif found == BEHIND_KEY then
  local head = read_head(reference)
  answer[7] = head and head.reference or nil
elseif found == DELAYED then
  answer[4] = tonumber(call('ZSCORE', delayed_key(lane, priority), reference))
elseif found == READY then
  local rules, queue = rules_of(lane), queue_of(lane)
  answer[5] = call('ZRANK', bin_key(pool, seat_of(reference, priority)), reference)
  if rules and rules.queues[queue] then
    answer[2], answer[3] = PAUSED, 'queue'
  elseif rules and rules.groups[group_of(reference)] then
    answer[2], answer[3] = PAUSED, 'group'
  elseif rules and rules.limited then
    -- Full for everything or for the queue: nothing is parked, the lane is not looked at.
    local list = counted(reference, lane, rules)
    for i = 1, #list, 2 do
      local kind, most = sub(list[i], 1, 1), list[i + 1][1]
      if kind == 'g' or kind == 'q' then
        local tokens, at = tokens_of(database_of(lane), list[i], list[i + 1])
        local full = no_slot(database_of(lane), list[i], most)
        if full or (tokens and tokens <= 0.999999) then
          answer[2], answer[3], answer[4] = LIMITED, kind == 'g' and 'global' or 'queue', not full and at or 0
          if full then
            for _, holder in ipairs(call('SRANDMEMBER', slots_key(database_of(lane), list[i]), 10)) do
              answer[#answer + 1] = holder
            end
          end
          break
        end
      end
    end
  end
elseif found == PAUSED then
  answer[3] = sub(pool, 19, 19) == 'a' and 'action' or 'action of group'
elseif found == LIMITED then
  local name = sub(pool, 19)
  answer[3] = sub(name, 1, 1) == 'a' and 'action' or 'key'
  answer[4] = tonumber(call('ZSCORE', WAKES, pool) or 0)
  for _, holder in ipairs(call('SRANDMEMBER', slots_key(database_of(lane), name), 10)) do answer[#answer + 1] = holder end
end
return answer
