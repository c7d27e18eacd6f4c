-- Take the oldest `free` references of these lanes, and `prefetch` more that have no key (up to the first that has
-- one), out of ready. Answers references, their ready times (text), their lanes.
local function pick(lanes, free, prefetch)
  local want, count, page = free + prefetch, 0, free + prefetch
  if #lanes > 1 then page = math.max(16, math.ceil(want / #lanes)) end
  local picked, readies, homes, heads, open = {}, {}, {}, {}, {}
  local function refill(head)
    head.rows = call('ZRANGE', ready_key(head.lane), head.seen, head.seen + page - 1, 'WITHSCORES')
    head.at, head.seen = 1, head.seen + page
    return head.rows[1] ~= nil
  end
  for _, lane in ipairs(lanes) do
    local head = {lane = lane, seen = 0, gone = {}}
    heads[#heads + 1] = head
    if refill(head) then open[#open + 1] = head end
  end
  while count < want and open[1] do
    local best, which = open[1], 1
    for i = 2, #open do
      local one = open[i]
      local a, b = tonumber(one.rows[one.at + 1]), tonumber(best.rows[best.at + 1])
      if a < b or (a == b and one.rows[one.at] < best.rows[best.at]) then best, which = one, i end
    end
    local rows, at, gone = best.rows, best.at, best.gone
    local reference = rows[at]
    if not valid(reference) then
      put_aside(reference)
    else
      if count >= free and sub(reference, -8) ~= NO_KEY then break end
      count = count + 1
      picked[count], readies[count], homes[count] = reference, rows[at + 1], best.lane
    end
    gone[#gone + 1] = reference
    best.at = at + 2
    if not rows[at + 2] and (#rows < 2 * page or not refill(best)) then table.remove(open, which) end
  end
  for _, head in ipairs(heads) do
    if head.gone[1] then call('ZREM', ready_key(head.lane), unpack(head.gone)) end
  end
  return picked, readies, homes
end
