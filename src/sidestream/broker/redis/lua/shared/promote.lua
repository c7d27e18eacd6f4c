-- What is due in a lane leaves delayed for ready (a key's head) or takes its place in its key's line; at most 100.
local function promote(lane)
  local delayed = delayed_key(lane)
  local due = call('ZRANGE', delayed, '-inf', NOW_TEXT, 'BYSCORE', 'LIMIT', 0, 100, 'WITHSCORES')
  if #due == 0 then return 0 end
  local gone, adds = {}, {}
  for i = 1, #due, 2 do gone[#gone + 1] = due[i] end
  call('ZREM', delayed, unpack(gone))
  local tried = call('EXISTS', TRIES) == 1
  for i = 1, #due, 2 do
    local reference, ready = due[i], tonumber(due[i + 1])
    if not valid(reference) then
      put_aside(reference)
    else
      if tried then
        local _, _, _, first = read_tries(reference)
        ready = first or ready
      end
      if keyed(reference) then
        stand(stander(reference, lane, ready, 0))
      else
        adds[#adds + 1] = digits(ready)
        adds[#adds + 1] = reference
      end
    end
  end
  if #adds > 0 then call('ZADD', ready_key(lane), unpack(adds)) end
  return #gone
end
