-- Move up to 100 due jobs of a lane out of delayed, the most urgent priority first: to the ready pool, or behind the head
-- of their key. Returns how many were moved.
local function promote(lane)
  local keys, gone, flow_jobs = {}, 0, {}
  for priority = 0, 9 do keys[priority + 1] = delayed_key(lane, priority) end
  if call('EXISTS', unpack(keys)) == 0 then return 0 end
  local have_attempts
  for priority = 0, 9 do
    local room = 100 - gone
    local due = room > 0
      and call('ZRANGE', keys[priority + 1], '-inf', NOW_TEXT, 'BYSCORE', 'LIMIT', 0, room, 'WITHSCORES') or {}
    local level, leaving = digits(priority), {}
    for i = 1, #due, 2 do
      if not valid(due[i]) or not keyed(due[i]) then leaving[#leaving + 1] = due[i] end
    end
    if leaving[1] then call('ZREM', keys[priority + 1], unpack(leaving)) end
    if due[1] and have_attempts == nil then have_attempts = call('EXISTS', ATTEMPTS) == 1 end
    gone = gone + #due / 2
    for i = 1, #due, 2 do
      local reference, ready = due[i], tonumber(due[i + 1])
      if not valid(reference) then
        quarantine(reference)
      else
        if have_attempts then
          local _, _, _, first = read_attempts(reference)
          ready = first or ready
        end
        if not keyed(reference) then
          local flow = flow_of(reference, level)
          local words = flow_jobs[flow] or {}
          flow_jobs[flow] = words
          words[#words + 1] = digits(ready)
          words[#words + 1] = reference
        elseif call('ZREM', keys[priority + 1], reference) == 1 then
          -- If it is gone, a job with a smaller id that came due with it has already put it behind its key.
          enqueue_keyed(keyed_entry(reference, lane, level, ready, 0))
        end
      end
    end
  end
  for flow, words in pairs(flow_jobs) do put(ready_pool(lane), flow, words) end
  if next(flow_jobs) then made_ready(lane) end
  return gone
end
-- The ms at which the first delayed job of a lane is due, or nil.
local function next_due(lane)
  local keys, first = {}, nil
  for priority = 0, 9 do keys[priority + 1] = delayed_key(lane, priority) end
  if call('EXISTS', unpack(keys)) == 0 then return nil end
  for _, key in ipairs(keys) do
    local due = tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
    if due and (not first or due < first) then first = due end
  end
  return first
end
