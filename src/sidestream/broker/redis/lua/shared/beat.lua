-- The gap rule: claim, renew and reclaim leave their time in meta. When all of them were silent for more than half a
-- lease, no owner could renew, so the end of that gap is kept and reclaim waits for it. Answers moved() as well.
local function beat_or_moved(half_lease)
  local found = call('HMGET', META, 'gen', 'last')
  if not found[1] or found[1] ~= ARGV[1] then return true end
  if found[2] and NOW - found[2] > half_lease then
    call('HSET', META, 'last', NOW_TEXT, 'gap', NOW_TEXT)
  else
    call('HSET', META, 'last', NOW_TEXT)
  end
  return false
end
