-- The gap rule. claim, renew and reclaim record their time in meta. If none of them ran for more than half a lease, no
-- worker could renew, so meta also records the end of this gap, and reclaim gives the workers time to renew after it.
-- heartbeat_or_stale returns what stale_generation() returns, and records the time if that is false.
local heartbeat_or_stale
do
local TICK = 1000 -- ms by which the clock may go back unnoticed: a normal step of the time service

-- The server's clock was set back by `by` ms: leases, announcements, timers and the delays of released jobs keep the time
-- that they had left. A job that has no attempts entry waits for a moment that its caller named, not for a delay. Checks at
-- most 1,000 jobs per lane and priority.
local function clock_went_back(by)
  call('HDEL', META, 'gap')
  for _, lane in ipairs(call('HKEYS', LANES)) do
    local late = call('ZRANGE', leased_key(lane), '(' .. NOW_TEXT, '+inf', 'BYSCORE')
    for _, reference in ipairs(late) do call('ZADD', leased_key(lane), NOW_TEXT, reference) end
    for priority = 0, 9 do
      local key = delayed_key(lane, priority)
      local delayed = call('ZRANGE', key, '(' .. NOW_TEXT, '+inf', 'BYSCORE', 'LIMIT', 0, 1000)
      local released = delayed[1] and call('HMGET', ATTEMPTS, unpack(delayed)) or {}
      for at, reference in ipairs(delayed) do
        if released[at] then call('ZINCRBY', key, digits(-by), reference) end
      end
    end
  end
  for _, worker in ipairs(call('ZRANGE', WORKERS, 0, -1)) do call('ZINCRBY', WORKERS, digits(-by), worker) end
  call('ZUNIONSTORE', TIMERS, 1, TIMERS, 'WEIGHTS', 0) -- run now; each is scheduled again by the new clock
end
function heartbeat_or_stale(half_lease)
  local found = call('HMGET', META, 'gen', 'last')
  if not found[1] or found[1] ~= ARGV[1] then return true end
  if found[2] and found[2] - NOW > TICK then clock_went_back(found[2] - NOW) end
  if found[2] and NOW - found[2] > half_lease then
    call('HSET', META, 'last', NOW_TEXT, 'gap', NOW_TEXT)
  else
    call('HSET', META, 'last', NOW_TEXT)
  end
  return false
end
end
