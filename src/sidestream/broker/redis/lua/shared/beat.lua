-- The gap rule: claim, renew and reclaim leave their time in meta. When all of them were silent for more than half a
-- lease, no owner could renew, so the end of that gap is kept and reclaim waits for it. Answers stale_generation() as well.
local beat_or_stale
do
local TICK = 1000 -- ms that this server's clock may go back without notice: a step of its time service

-- This server's clock was set back: whatever was to happen some time after what is still to come happens as long after now.
local function clock_went_back(by)
  call('HDEL', META, 'gap')
  for _, lane in ipairs(call('HKEYS', LANES)) do
    local late = call('ZRANGE', leased_key(lane), '(' .. NOW_TEXT, '+inf', 'BYSCORE')
    for _, reference in ipairs(late) do call('ZADD', leased_key(lane), NOW_TEXT, reference) end
  end
  for _, worker in ipairs(call('ZRANGE', WORKERS, 0, -1)) do call('ZINCRBY', WORKERS, digits(-by), worker) end
  call('ZUNIONSTORE', TIMERS, 1, TIMERS, 'WEIGHTS', 0) -- looked at now, and again when it is due by this clock
end
function beat_or_stale(half_lease)
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
