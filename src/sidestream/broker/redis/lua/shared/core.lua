-- Names, time and the generation check that every script begins with.
-- ARGV[1] the caller's generation number, ARGV[2] a test's clock in Unix ms, or '' for this server's own.
local P = KEYS[1]
local META, LANES, DIRECT, TRIES, DEAD = P .. 'meta', P .. 'lanes', P .. 'direct', P .. 'tries', P .. 'dead'
local HEADS, BEHIND, LEASES = P .. 'heads', P .. 'behind', P .. 'leases'
local FREE, WORKERS, STRANGE = P .. 'free', P .. 'workers', P .. 'strange'
local function ready_key(lane) return P .. 'ready:' .. lane end
local function delayed_key(lane) return P .. 'delayed:' .. lane end
local function held_key(lane) return P .. 'held:' .. lane end
local function hand_key(consumer) return P .. 'hand:' .. consumer end

local OK, MOVED = 0, 1
local call, sub, byte = redis.call, string.sub, string.byte

-- Lua prints large numbers with an exponent; Redis and Python want digits.
local function digits(number) return string.format('%d', number) end

local NOW = tonumber(ARGV[2])
if not NOW then
  local time = call('TIME')
  NOW = time[1] * 1000 + math.floor(time[2] / 1000)
end
local NOW_TEXT = digits(NOW)

local function moved()
  local generation = call('HGET', META, 'gen')
  return not generation or generation ~= ARGV[1]
end
