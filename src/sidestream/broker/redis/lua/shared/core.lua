-- Names, time and the generation check that every function begins with. Called first by each, because a library is
-- loaded once and its functions run many times: what is local to the library is set anew for each call.
-- KEYS[1] the prefix; ARGV[1] the caller's generation number, ARGV[2] a test's clock in Unix ms, or '' for this server's own.
local OK, MOVED = 0, 1
local KEYS, ARGV, call, sub, byte, NOW, NOW_TEXT
local P, META, LANES, DIRECT, TRIES, DEAD, HEADS, BEHIND, LEASES, FREE, WORKERS, STRANGE

-- Lua prints large numbers with an exponent; Redis and Python want digits.
local function digits(number) return string.format('%d', number) end

local function begin_call(keys, argv)
  KEYS, ARGV, call, sub, byte = keys, argv, redis.call, string.sub, string.byte -- while it is loaded none of them exists
  if P ~= KEYS[1] then
    P = KEYS[1]
    META, LANES, DIRECT, TRIES, DEAD = P .. 'meta', P .. 'lanes', P .. 'direct', P .. 'tries', P .. 'dead'
    HEADS, BEHIND, LEASES = P .. 'heads', P .. 'behind', P .. 'leases'
    FREE, WORKERS, STRANGE = P .. 'free', P .. 'workers', P .. 'strange'
  end
  NOW = tonumber(ARGV[2])
  if not NOW then
    local time = call('TIME')
    NOW = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  NOW_TEXT = digits(NOW)
end

local function ready_key(lane) return P .. 'ready:' .. lane end
local function delayed_key(lane) return P .. 'delayed:' .. lane end
local function held_key(lane) return P .. 'held:' .. lane end
local function hand_key(consumer) return P .. 'hand:' .. consumer end

local function moved()
  local generation = call('HGET', META, 'gen')
  return not generation or generation ~= ARGV[1]
end
