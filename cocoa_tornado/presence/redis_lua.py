"""The Lua text of presence in Redis. Arguments, replies and keys: ``redis_scripts.py``.

A script is atomic, except that an error keeps the writes before it. So each script reads everything before its first
write. Redis can reject only the first write of a script, for lack of memory or of replicas: CLAIM begins with one that
it rejects when memory is full, the others with one that it accepts. Connected devices keep their connections then, and
no new one is admitted.
"""

from __future__ import annotations

from typing import Final

BASE: Final = """
local meta = KEYS[1]
local root = string.sub(meta, 1, -5)
local servers, infos = root .. 'servers', root .. 'info'

local function whole(number)
  -- The first takes half as long, but may be limited to 32 bits.
  return string.format(number < 2147483648 and '%d' or '%.0f', number)
end

-- Whether the arguments are for this term, and for the Redis process in which it began.
local function is_current(stamp)
  local found = redis.call('HMGET', meta, 'term', 'run')
  return (found[1] or '') .. ':' .. (found[2] or '') == stamp
end

-- Whether an epoch may hold devices.
local known = {}
local function is_alive(epoch)
  if known[epoch] == nil then known[epoch] = redis.call('HEXISTS', servers, epoch) == 1 end
  return known[epoch]
end

-- The holders of a device, oldest first, dead ones among them; false if its bucket has another type.
local function holders_of(bucket, device)
  local key = root .. 'h:' .. bucket
  local found = redis.pcall('HGET', key, device)
  if type(found) ~= 'table' then return found or '' end
  -- Any other error, such as a missing permission, ends the script: it has not written anything yet.
  return not string.find(found.err, 'WRONGTYPE', 1, true) and redis.call('HGET', key, device)
end

-- Whether this very claim, with this generation, holds the device.
local function holds(bucket, device, holder)
  return string.find(' ' .. (holders_of(bucket, device) or '') .. ' ', ' ' .. holder .. ' ', 1, true) ~= nil
end
"""
"""For the scripts of others too: ``is_current``, ``is_alive``, ``holders_of``, ``holds``. ``KEYS[1]`` is ``p:meta``."""

_WRITING: Final = """
-- A write that Redis accepts although memory is full; after it, Redis accepts every write of the script.
local function begin_although_full() redis.call('DEL', root .. 'probe') end

local function forget(epoch)
  redis.call('HDEL', servers, epoch)
  redis.call('HDEL', infos, epoch)
  redis.call('UNLINK', root .. 'in:' .. epoch, root .. 'q:' .. epoch)
end
"""

JOIN: Final = (
    BASE
    + _WRITING
    + """
local run, known_term, epoch, clock = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local found = redis.call('HMGET', meta, 'term', 'run', 'settled')
local term, settled = tonumber(found[1]) or 0, found[3] or '0'
local before = redis.call('HKEYS', servers)
begin_although_full()
if found[2] ~= run or known_term > term then
  term, settled = math.max(term + 1, known_term + 1, clock), '0'
  for _, other in ipairs(before) do forget(other) end
  redis.call('DEL', servers, infos)
  redis.call('HSET', meta, 'term', whole(term), 'run', run, 'settled', settled)
end
redis.call('HSETNX', servers, epoch, '0')
return {'joined', whole(term), settled}
"""
)

BEAT: Final = (
    BASE
    + _WRITING
    + """
if not is_current(ARGV[1]) then return {'term'} end
local epoch, seen, info = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local beat = tonumber(redis.call('HGET', servers, epoch) or '')
-- A beat that went back belongs to an epoch that was forgotten in the meantime.
if not beat or seen > beat then return {'fenced'} end
begin_although_full()
if seen == beat then
  beat = seen + 1
  redis.call('HSET', servers, epoch, whole(beat))
end
if info ~= '' then redis.call('HSET', infos, epoch, info) end
return {'beat', whole(beat), redis.call('HGET', meta, 'settled') or '0', redis.call('HGETALL', servers),
  redis.call('HGETALL', infos)}
"""
)

CLAIM: Final = (
    BASE
    + """
if not is_current(ARGV[1]) then return {'term'} end
local epoch, per_device = ARGV[2], tonumber(ARGV[3])
if not is_alive(epoch) then return {'fenced'} end
local is_settled = redis.call('HGET', meta, 'settled') == '1'
local generation = tonumber(redis.call('HGET', meta, 'gen') or '0')
local generation_before = generation
local values, changed, replies = {}, {}, {'claims'}

local function claim(bucket, device, number, kind, kept)
  local place = bucket .. ' ' .. device
  local living, again, is_late = {}, nil, false
  local found = values[place] or holders_of(bucket, device)
  if not found then return 'foreign' end
  for holder in string.gmatch(found, '%S+') do
    local server, its_number, its_generation = string.match(holder, '^(.+):(%d+):(%d+)$')
    local stays
    if server == epoch then
      local is_kept = string.find(kept, ',' .. its_number .. ',', 1, true)
      if its_number == number then again = its_generation end
      if not is_kept and tonumber(its_number) > tonumber(number) then is_late = true end
      -- One that does not stay is a claim that the server has given up.
      stays = is_kept or tonumber(its_number) >= tonumber(number)
    else
      stays = server and is_alive(server)
    end
    if stays then living[#living + 1] = holder end
  end
  if again then return 'granted ' .. again end
  if is_late then return 'late' end
  if kind == 'new' and not is_settled then return 'settling' end
  if #living >= per_device then return 'held ' .. table.concat(living, ' ') end
  generation = generation + 1
  living[#living + 1] = epoch .. ':' .. number .. ':' .. whole(generation)
  values[place] = table.concat(living, ' ')
  changed[#changed + 1] = {bucket, device, place}
  return 'granted ' .. whole(generation)
end

for at = 4, #ARGV, 5 do
  replies[#replies + 1] = claim(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4])
end
if generation ~= generation_before then redis.call('HSET', meta, 'gen', whole(generation)) end
for _, change in ipairs(changed) do
  redis.call('HSET', root .. 'h:' .. change[1], change[2], values[change[3]])
end
return replies
"""
)

RELEASE: Final = (
    BASE
    + _WRITING
    + """
if not is_current(ARGV[1]) then return {'term'} end
local values, changed = {}, {}
for at = 2, #ARGV, 4 do
  local bucket, device = ARGV[at], ARGV[at + 1]
  local place = bucket .. ' ' .. device
  local released = ARGV[at + 2] .. ':' .. ARGV[at + 3] .. ':'
  local others, is_found = {}, false
  for holder in string.gmatch(values[place] or holders_of(bucket, device) or '', '%S+') do
    if string.sub(holder, 1, #released) == released then is_found = true else others[#others + 1] = holder end
  end
  if is_found then
    values[place] = table.concat(others, ' ')
    changed[#changed + 1] = {bucket, device, place}
  end
end
begin_although_full()
for _, change in ipairs(changed) do
  local key, value = root .. 'h:' .. change[1], values[change[3]]
  if value == '' then redis.call('HDEL', key, change[2]) else redis.call('HSET', key, change[2], value) end
end
return {'released'}
"""
)

HOLDERS: Final = (
    BASE
    + """
if not is_current(ARGV[1]) then return {'term'} end
local replies = {'holders'}
for at = 2, #ARGV, 2 do
  local living = {}
  local found = holders_of(ARGV[at], ARGV[at + 1])
  if not found then
    living[1] = '?'
  else
    for holder in string.gmatch(found, '%S+') do
      if is_alive(string.match(holder, '^[^:]*')) then living[#living + 1] = holder end
    end
  end
  replies[#replies + 1] = table.concat(living, ' ')
end
return replies
"""
)

FENCE: Final = (
    BASE
    + _WRITING
    + """
if not is_current(ARGV[1]) then return {'term'} end
if redis.call('HGET', servers, ARGV[2]) ~= ARGV[3] then return {'done', '0'} end
begin_although_full()
forget(ARGV[2])
return {'done', '1'}
"""
)

SETTLE: Final = (
    BASE
    + _WRITING
    + """
if not is_current(ARGV[1]) then return {'term'} end
begin_although_full()
redis.call('HSET', meta, 'settled', '1')
return {'done', '1'}
"""
)

LEAVE: Final = (
    BASE
    + _WRITING
    + """
if not is_current(ARGV[1]) then return {'term'} end
if not is_alive(ARGV[2]) then return {'fenced'} end
begin_although_full()
forget(ARGV[2])
return {'done', '1'}
"""
)
