-- Announce that a worker is alive, which lanes it serves and which actions it knows. workers: worker -> until_ms.
-- info: worker -> its lanes on one line, then its info.
-- KEYS[1] prefix; builds meta workers info worker_actions worker_actions:<digest>
-- ARGV    generation, now, worker, info (JSON), ttl ms, digest of its actions ('' knows any), how many tags follow, tags,
--         lanes...
-- Returns {code}
-- Flags   allow-oom
if stale_generation() then return {STALE_GENERATION} end
local digest, tags = ARGV[6], tonumber(ARGV[7])
local lanes = table.concat({unpack(ARGV, 8 + tags)}, ' ')
call('ZADD', WORKERS, digits(NOW + ARGV[5]), ARGV[3])
call('HSET', INFO, ARGV[3], lanes .. '\n' .. ARGV[4])
if digest == '' then
  call('HDEL', WORKER_ACTIONS, ARGV[3])
else
  call('HSET', WORKER_ACTIONS, ARGV[3], digest)
  local set = P .. 'worker_actions:' .. digest
  for at = 8, 7 + tags, 500 do call('SADD', set, unpack(ARGV, at, math.min(at + 499, 7 + tags))) end
  call('PEXPIRE', set, 604800000) -- a week after the last announcement that names this set
end
return {OK}
