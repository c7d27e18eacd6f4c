-- Where a job waits: ready:<lane> scored by its first-ready time, or delayed:<lane> scored by its due time.
local function place(reference, lane, ready, due)
  if due > NOW then
    call('ZADD', delayed_key(lane), digits(due), reference)
  else
    call('ZADD', ready_key(lane), digits(ready), reference)
  end
end
local function unplace(reference, lane)
  return call('ZREM', ready_key(lane), reference) + call('ZREM', delayed_key(lane), reference)
end
local function handed_off(reference) return call('HEXISTS', LEASES, reference) == 1 end
