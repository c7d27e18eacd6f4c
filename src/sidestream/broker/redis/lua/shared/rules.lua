-- What is paused, limited and weighted. rules: database (16 hex digits) -> MessagePack (broker/redis/rules_wire.py); its
-- version stands in meta as rules:<database>. Parsed once a version; the version carries a digest of the bytes, so that what
-- this server parsed in an earlier life cannot stand for other rules.
local database_of, queue_of, rules_of, is_synced, actions_of
do -- the rest is known in this file alone
local parsed = {}
local function set_of(names)
  local set = {}
  for _, name in ipairs(names) do set[name] = true end
  return set
end
local function parse(text)
  local told = cmsgpack.unpack(text)
  local rules = {
    aging = told.aging,
    queues = set_of(told.paused_queues), actions = set_of(told.paused_actions), groups = set_of(told.paused_groups),
    pairs = set_of(told.paused_pairs), queue_weights = told.queue_weights, group_weights = told.group_weights,
    everything = told.limits.everything, by_queue = told.limits.queues, by_action = told.limits.actions,
    by_key = told.limits.keys,
  }
  rules.grouped = next(rules.groups) ~= nil
  rules.limited = rules.everything ~= nil or next(rules.by_queue) ~= nil or next(rules.by_action) ~= nil
    or next(rules.by_key) ~= nil
  -- Whether each job has to be looked at before it is handed out.
  rules.picky = rules.limited or next(rules.actions) ~= nil or next(rules.pairs) ~= nil
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
-- Whether supervisors have stated what they hold: before that nothing that a concurrency limit concerns is granted.
function is_synced(database)
  local field = 'synced:' .. database
  if rules_seen[field] == nil then rules_seen[field] = call('HEXISTS', META, field) == 1 end
  return rules_seen[field]
end

-- Which actions a worker knows, or nil for any. worker_actions: worker -> digest; worker_actions:<digest>: set of action tags.
local known_sets = {}
function actions_of(worker)
  local digest = call('HGET', WORKER_ACTIONS, worker)
  if not digest then return nil end
  local known = known_sets[digest]
  if not known then
    known = set_of(call('SMEMBERS', P .. 'worker_actions:' .. digest))
    -- Empty: it may have run out, and is told again by the next announcement.
    if next(known) then known_sets[digest] = known end
  end
  return known
end
end
