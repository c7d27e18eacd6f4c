-- tries: reference -> "attempts crashes releases ready_ms", only for jobs that were handed back or charged.
local function read_tries(reference)
  local text = call('HGET', TRIES, reference)
  if not text then return 0, 0, 0, nil end
  local attempts, crashes, releases, ready = string.match(text, '^(%d+) (%d+) (%d+) (%d+)$')
  return tonumber(attempts), tonumber(crashes), tonumber(releases), tonumber(ready)
end
local function write_tries(reference, attempts, crashes, releases, ready)
  call('HSET', TRIES, reference, string.format('%d %d %d %d', attempts, crashes, releases, ready))
end
