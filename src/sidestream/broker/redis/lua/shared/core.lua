-- Names, time and the generation check that every function begins with. Called first by each, because a library is
-- loaded once and its functions run many times: what is local to the library is set anew for each call.
-- KEYS[1] the prefix; ARGV[1] the caller's generation number, ARGV[2] a test's clock in Unix ms, or '' for this server's own.
local OK, STALE_GENERATION = 0, 1
local KEYS, ARGV, call, sub, byte, NOW, NOW_TEXT
local P, META, LANES, DIRECT, ATTEMPTS, FAILED, HEADS, BEHIND, LEASES, IDLE, WORKERS, INFO, TASKS, QUARANTINE
local RULES, BUCKETS, TIMERS, LANE_CLOCK, WORKER_ACTIONS, PARKED, UNROUTED_POOLS, REFILLS

-- Lua prints large numbers with an exponent; Redis and Python want digits.
local function digits(number) return string.format('%d', number) end

-- Numbers of lanes, looked up once a call: keys carry the number, not the name.
local lane_numbers
-- The rules of a database, read once a call (rules.lua).
local rules_seen
-- Lanes in which something became claimable in this call: hand_off looks at their readers, and at nobody else's.
local ready_lanes
-- Lanes in which this call met a job whose action somebody did not know.
local unknown_in

local function begin_call(keys, argv)
  KEYS, ARGV, call, sub, byte = keys, argv, redis.call, string.sub, string.byte -- while it is loaded none of them exists
  if P ~= KEYS[1] then
    P = KEYS[1]
    META, LANES, DIRECT, ATTEMPTS, FAILED = P .. 'meta', P .. 'lanes', P .. 'direct', P .. 'attempts', P .. 'failed'
    HEADS, BEHIND, LEASES = P .. 'heads', P .. 'behind', P .. 'leases'
    IDLE, WORKERS, INFO, TASKS = P .. 'idle', P .. 'workers', P .. 'info', P .. 'tasks'
    QUARANTINE = P .. 'quarantine'
    RULES, BUCKETS, TIMERS, LANE_CLOCK = P .. 'rules', P .. 'buckets', P .. 'timers', P .. 'lane_clock'
    WORKER_ACTIONS, PARKED = P .. 'worker_actions', P .. 'parked'
    UNROUTED_POOLS, REFILLS = P .. 'unrouted', P .. 'refills'
  end
  NOW = tonumber(ARGV[2])
  if not NOW then
    local time = call('TIME')
    NOW = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  NOW_TEXT = digits(NOW)
  lane_numbers, rules_seen, ready_lanes, unknown_in = {}, {}, {}, {}
end

-- lanes: lane -> its number in this generation, given when a job first enters it; lanes:<database>: the lanes of a database.
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

-- Something in a lane may be handed out that could not be before.
local function made_ready(lane)
  if not ready_lanes[lane] then
    ready_lanes[lane] = true
    ready_lanes[#ready_lanes + 1] = lane
  end
end
local function all_made_ready(database)
  for _, lane in ipairs(call('SMEMBERS', P .. 'lanes:' .. database)) do made_ready(lane) end
end

-- What the keys below mean. A release that changes that gives it the next number, so that no other one takes the contents
-- for its own: every call compares it, as it compares the generation.
local FORMAT = '1'
local function stale_generation()
  local found = call('HMGET', META, 'gen', 'format')
  return not found[1] or found[1] ~= ARGV[1] or found[2] ~= FORMAT
end
