-- Key names, time and the generation check. Every function calls begin_call first: the library is loaded once, so its
-- local variables survive from one call to the next and must be set again.
-- KEYS[1] is the prefix, ARGV[1] the caller's generation number, ARGV[2] a test's clock in Unix ms, or '' for the
-- server's own clock. In the functions' headers, "builds" lists the keys that a function touches; JOBS stands for
-- lanes, lanes:<db>, schedule:<pool>, flow:<pool>:<flow>, singletons:<pool>, delayed:<lane number>:<priority>, heads,
-- key:<db>:<tag>, leases, leased:<lane>, attempts, direct, rules, slots:<db>:<limit>, buckets, refills, timers,
-- lane_clock, parked, unrouted, worker_actions, worker_actions:<digest>, idle, idle:<lane>, handoff:<worker> and
-- quarantine: the keys that a job can pass through. docs/reference/keys.md describes all of them.
local OK, STALE_GENERATION = 0, 1
local KEYS, ARGV, call, sub, byte, NOW, NOW_TEXT
local P, META, LANES, DIRECT, ATTEMPTS, FAILED, HEADS, LEASES, IDLE, WORKERS, INFO, TASKS, QUARANTINE
local RULES, BUCKETS, TIMERS, LANE_CLOCK, WORKER_ACTIONS, PARKED, UNROUTED_SET, REFILLS

-- Kinds: the first character of a pool's name, of a task in timers, of a limit's name, and of what a paused pool holds.
local POOL = {READY = 'r', LIMITED = 'l', PAUSED = 'p', UNROUTED = 'u'}
local TASK = {SWEEP = 's', RESUME_GROUP = 'g'} -- besides the names of pools
local LIMIT = {GLOBAL = 'g', QUEUE = 'q', ACTION = 'a', KEY = 'k'}
local PAUSE = {ACTION = 'a', GROUP_ACTION = 'x'}
local function kind_of(name) return sub(name, 1, 1) end

-- Lua prints large numbers with an exponent; Redis and Python need digits.
local function digits(number) return string.format('%d', number) end

-- Lane -> its number, looked up once per call. Keys contain the number, not the name.
local lane_numbers
-- Database -> its rules, read once per call (rules.lua).
local rules_seen
-- Lanes in which a job became claimable in this call: hand_off serves the idle workers of these lanes only.
local ready_lanes
-- Lanes in which this call parked a job because the worker did not know its action.
local unrouted_lanes

local function begin_call(keys, argv)
  KEYS, ARGV, call, sub, byte = keys, argv, redis.call, string.sub, string.byte -- none of them exists while the library is loaded
  if P ~= KEYS[1] then
    P = KEYS[1]
    META, LANES, DIRECT, ATTEMPTS, FAILED = P .. 'meta', P .. 'lanes', P .. 'direct', P .. 'attempts', P .. 'failed'
    HEADS, LEASES = P .. 'heads', P .. 'leases'
    IDLE, WORKERS, INFO, TASKS = P .. 'idle', P .. 'workers', P .. 'info', P .. 'tasks'
    QUARANTINE = P .. 'quarantine'
    RULES, BUCKETS, TIMERS, LANE_CLOCK = P .. 'rules', P .. 'buckets', P .. 'timers', P .. 'lane_clock'
    WORKER_ACTIONS, PARKED = P .. 'worker_actions', P .. 'parked'
    UNROUTED_SET, REFILLS = P .. 'unrouted', P .. 'refills'
  end
  NOW = tonumber(ARGV[2])
  if not NOW then
    local time = call('TIME')
    NOW = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  NOW_TEXT = digits(NOW)
  lane_numbers, rules_seen, ready_lanes, unrouted_lanes = {}, {}, {}, {}
end

-- A lane gets its number when a job first enters it.
local function lane_number(lane)
  local number = lane_numbers[lane]
  if not number then
    number = call('HGET', LANES, lane)
    if not number then
      number = digits(call('HINCRBY', META, 'lane', 1))
      call('HSET', LANES, lane, number)
      call('SADD', P .. 'lanes:' .. sub(lane, 1, 16), lane)
    end
    lane_numbers[lane] = number
  end
  return number
end

local function delayed_key(lane, priority) return P .. 'delayed:' .. lane_number(lane) .. ':' .. priority end
local function leased_key(lane) return P .. 'leased:' .. lane end
local function idle_key(lane) return P .. 'idle:' .. lane end
local function handoff_key(worker) return P .. 'handoff:' .. worker end

-- A job of this lane may have become claimable.
local function made_ready(lane)
  if not ready_lanes[lane] then
    ready_lanes[lane] = true
    ready_lanes[#ready_lanes + 1] = lane
  end
end
local function all_made_ready(database)
  for _, lane in ipairs(call('SMEMBERS', P .. 'lanes:' .. database)) do made_ready(lane) end
end

-- The format of the keys. A release that changes the format uses the next number. Every call compares the number, as it
-- compares the generation, so that no release misreads the contents of another.
local FORMAT = '1'
local function stale_generation()
  local found = call('HMGET', META, 'gen', 'format')
  return not found[1] or found[1] ~= ARGV[1] or found[2] ~= FORMAT
end
