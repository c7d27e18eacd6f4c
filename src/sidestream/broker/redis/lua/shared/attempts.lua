-- attempts: reference -> "attempts crashes releases ready_ms", only for jobs that were released or charged.
local function read_attempts(reference)
  local text = call('HGET', ATTEMPTS, reference)
  if not text then return 0, 0, 0, nil end
  local attempts, crashes, releases, ready = string.match(text, '^(%d+) (%d+) (%d+) (%d+)$')
  return tonumber(attempts), tonumber(crashes), tonumber(releases), tonumber(ready)
end
local function write_attempts(reference, attempts, crashes, releases, ready)
  call('HSET', ATTEMPTS, reference, string.format('%d %d %d %d', attempts, crashes, releases, ready))
end
