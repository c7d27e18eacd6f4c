-- Pauses, limits and weights. rules: database (16 hex digits) -> MessagePack (broker/redis/rules_wire.py); meta holds
-- their version as rules:<database>. Each version is parsed once. The version contains a digest of the bytes, so rules
-- that were parsed before Redis was emptied cannot be mistaken for others.
local database_of, queue_of, rules_of, is_synced, actions_of
do
local parsed = {}
local function set_of(names)
  local set = {}
  for _, name in ipairs(names) do set[name] = true end
  return set
end
local function parse(text)
  local fields = cmsgpack.unpack(text)
  local rules = {
    aging = fields.aging,
    queues = set_of(fields.paused_queues), actions = set_of(fields.paused_actions),
    groups = set_of(fields.paused_groups), pairs = set_of(fields.paused_pairs),
    queue_weights = fields.queue_weights, group_weights = fields.group_weights,
    everything = fields.limits.everything, by_queue = fields.limits.queues, by_action = fields.limits.actions,
    by_key = fields.limits.keys,
  }
  rules.grouped = next(rules.groups) ~= nil
  rules.limited = rules.everything ~= nil or next(rules.by_queue) ~= nil or next(rules.by_action) ~= nil
    or next(rules.by_key) ~= nil
  -- Whether each job must be checked before it is handed out.
  rules.per_job = rules.limited or next(rules.actions) ~= nil or next(rules.pairs) ~= nil
  return rules
end
function database_of(lane) return sub(lane, 1, 16) end
function queue_of(lane) return sub(lane, 18) end

-- The rules that govern a lane, or false before they were given in this generation.
function rules_of(lane)
  local database = database_of(lane)
  local seen = rules_seen[database]
  if seen ~= nil then return seen end
  seen = false
  local version = call('HGET', META, 'rules:' .. database)
  if version then
    local kept = parsed[database]
    if not kept or kept.version ~= version then
      kept = {version = version, rules = parse(call('HGET', RULES, database))}
      parsed[database] = kept
    end
    seen = kept.rules
  end
  rules_seen[database] = seen
  return seen
end
-- Whether the workers have reasserted the jobs that they hold. Until then, concurrency limits admit no job.
function is_synced(database)
  local field = 'synced:' .. database
  if rules_seen[field] == nil then rules_seen[field] = call('HEXISTS', META, field) == 1 end
  return rules_seen[field]
end

-- The set of actions that a worker knows, or nil for any. worker_actions: worker -> digest of them;
-- worker_actions:<digest>: SET of their tags.
local known_sets = {}
function actions_of(worker)
  local digest = call('HGET', WORKER_ACTIONS, worker)
  if not digest then return nil end
  local known = known_sets[digest]
  if not known then
    known = set_of(call('SMEMBERS', P .. 'worker_actions:' .. digest))
    -- An empty set may have expired; the next announcement writes it again.
    if next(known) then known_sets[digest] = known end
  end
  return known
end
end
