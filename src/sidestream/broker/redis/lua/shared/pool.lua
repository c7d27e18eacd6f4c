-- A pool: where jobs wait that may be taken in any order that is fair. Ready jobs of a lane ('r<lane number>'), and those
-- that a limit, a pause or an unknown action keeps (parked.lua). ring:<pool>: a seat for each bin that is served, scored
-- priority x 2^40 + its group's virtual time; bin:<pool>:<seat>: members scored by their first-ready time in ms. The only
-- member of a seat beside others needs no bin: ones:<pool> holds "<first-ready time> <member>" (10,000 groups of one job: a
-- third of the memory). It moves into a bin when a second one comes, so that a seat has a bin or a field of ones, never both.
-- A seat: the priority as a digit, then the group's 8 bytes. Stride scheduling: a group's time grows by 1/weight a job.
local ring_key, bin_key, seat_of, take_seat, put, first_of, ready_of, is_empty, forget_pool, remove, next_seat,
  pop, charge
do -- the rest is known in this file alone
local LEVEL = 1099511627776 -- 2^40
function ring_key(pool) return P .. 'ring:' .. pool end
function bin_key(pool, seat) return P .. 'bin:' .. pool .. ':' .. seat end
local function ones_key(pool) return P .. 'ones:' .. pool end
function seat_of(reference, priority) return priority .. group_of(reference) end

-- A bin was filled: its seat joins the ring, served as the next of its priority.
function take_seat(pool, seat)
  local ring, floor = ring_key(pool), byte(seat, 1) - 48
  local first = call('ZRANGE', ring, floor * LEVEL, '(' .. string.format('%.0f', (floor + 1) * LEVEL), 'BYSCORE',
    'LIMIT', 0, 1, 'WITHSCORES')[2]
  if first and call('ZSCORE', ring, seat) then return end
  call('ZADD', ring, first or string.format('%.0f', floor * LEVEL), seat)
end

-- The only member of a seat and its first-ready time (text); nil when it has none, or a bin.
local function single(pool, seat)
  local value = call('HGET', ones_key(pool), seat)
  if not value then return nil end
  local ready, member = string.match(value, '^(%d+) (.*)$')
  return member or value, ready or '0' -- something foreign: whoever takes it puts it aside
end

-- words: score, member, ... of one seat. One that was empty joins the ring; a paused group's leaves it when met (pick.lua).
function put(pool, seat, words)
  local bin = bin_key(pool, seat)
  if call('EXISTS', bin) == 0 then
    local member, ready = single(pool, seat)
    if member then
      call('HDEL', ones_key(pool), seat)
      call('ZADD', bin, ready, member)
      -- A release that knows no ones may have taken it away. Not so that of a paused group: as long as its seat is in the
      -- ring, it may get the turn of those that are aged.
      local rules = byte(pool) == 114 and rules_of(hex(sub(words[2], 2, 9))) -- r
      if not rules or not rules.groups[sub(seat, 2)] then take_seat(pool, seat) end
    elseif not words[3] and call('EXISTS', ring_key(pool)) == 1 then
      call('HSET', ones_key(pool), seat, words[1] .. ' ' .. words[2])
      return take_seat(pool, seat)
    else
      take_seat(pool, seat)
    end
  end
  call('ZADD', bin, unpack(words))
end

-- What a seat has first: its member and first-ready time (text), or nil.
function first_of(pool, seat)
  local found = call('ZRANGE', bin_key(pool, seat), 0, 0, 'WITHSCORES')
  if found[1] then return found[1], found[2] end
  return single(pool, seat)
end

-- The first-ready time (text) of a member, or nil when it is not there.
function ready_of(pool, seat, member)
  local ready = call('ZSCORE', bin_key(pool, seat), member)
  if ready then return ready end
  local only, its = single(pool, seat)
  return only == member and its or nil
end

function is_empty(pool) return call('EXISTS', ring_key(pool)) == 0 end
-- A parked pool is empty: nothing in it has to be looked at.
function forget_pool(pool)
  call('SREM', byte(pool) == 117 and UNKNOWN or PARKED, pool) -- u
  call('ZREM', WAKES, pool)
end

-- One member leaves; answers how many did (1 or 0).
function remove(pool, seat, member)
  local bin = bin_key(pool, seat)
  local gone = call('ZREM', bin, member)
  if gone == 0 and single(pool, seat) == member then gone = call('HDEL', ones_key(pool), seat) end
  if gone == 1 and call('EXISTS', bin) == 0 then
    call('ZREM', ring_key(pool), seat)
    if byte(pool) ~= 114 and is_empty(pool) then forget_pool(pool) end -- r
  end
  return gone
end

-- The seat that is served next, whose time has come most of all among the lowest priority number, or nil. `ageing` (ms):
-- every second turn belongs to a lower priority whose next job is ready for longer, those priorities in turn.
function next_seat(pool, ageing)
  local ring = ring_key(pool)
  local first = call('ZRANGE', ring, 0, 0)[1]
  if not first or not ageing then return first end
  local last = call('ZRANGE', ring, -1, -1)[1]
  if byte(last, 1) == byte(first, 1) then return first end
  -- Whose turn it is: 1 after a turn of the aged, then the priority that had the last one: aged priorities take turns as well.
  local kept, aged, wrap = call('HGET', TURNS, 'a' .. pool) or '00', nil, nil
  local level, before = byte(first, 1) - 47, byte(kept, 2) - 48
  while level <= 9 and not aged do
    local seat = call('ZRANGE', ring, string.format('%.0f', level * LEVEL), '+inf', 'BYSCORE', 'LIMIT', 0, 1)[1]
    if not seat then break end
    level = byte(seat, 1) - 47
    local _, ready = first_of(pool, seat)
    if ready and NOW - ready > ageing then
      wrap = wrap or seat
      if level - 1 > before then aged = seat end
    end
  end
  aged = aged or wrap
  if not aged then return first end
  if sub(kept, 1, 1) == '1' then
    call('HSET', TURNS, 'a' .. pool, '0' .. before)
    return first
  end
  call('HSET', TURNS, 'a' .. pool, '1' .. sub(aged, 1, 1))
  return aged
end

-- Take up to `count` from a seat; answers member, score, ... and whether the seat is empty now.
function pop(pool, seat, count)
  local bin = bin_key(pool, seat)
  local found = call('ZPOPMIN', bin, count)
  if not found[1] then
    found = {single(pool, seat)}
    call('HDEL', ones_key(pool), seat)
  end
  local empty = #found < 2 * count or call('EXISTS', bin) == 0
  if empty then call('ZREM', ring_key(pool), seat) end
  return found, empty
end
-- What `count` jobs cost a group of this weight.
function charge(pool, seat, count, weight)
  call('ZINCRBY', ring_key(pool), string.format('%.6f', count / weight), seat)
end
end
