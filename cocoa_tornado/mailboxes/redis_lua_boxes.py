"""Lua for the boxes of the Redis mailbox: their fields, their lanes, and how messages leave them.

A box is *plain* as long as it has held messages of normal priority only, without ``ttl``, ``collapse_key`` or ``id``.
Its messages then leave it at the old end only, and ``gone`` says which have. Any other box has the field ``more``,
further fields, and indexes of its messages.
"""

from __future__ import annotations

from typing import Final

RETRACTED: Final = """
-- The retracted numbers of a lane as text, such as '3-90:41 95-97 99'; see rules/retracted.py.
local function runs_of(text)
  local runs = {}
  for first, last, count in string.gmatch(text, '(%d+)%-?(%d*):?(%d*)') do
    first = tonumber(first)
    last = tonumber(last) or first
    runs[#runs + 1] = {first, last, tonumber(count) or last - first + 1}
  end
  return runs
end

local function text_of(runs)
  local parts = {}
  for at, run in ipairs(runs) do
    local first, last, count = unpack(run)
    local text = first < last and whole(first) .. '-' .. whole(last) or whole(first)
    parts[at] = count == last - first + 1 and text or text .. ':' .. whole(count)
  end
  return table.concat(parts, ' ')
end

-- Join a run with the one behind it.
local function join(runs, at)
  runs[at] = {runs[at][1], runs[at + 1][2], runs[at][3] + runs[at + 1][3]}
  table.remove(runs, at + 1)
end

local function with_number(text, number)
  local runs = runs_of(text)
  local at = #runs
  while at > 0 and runs[at][1] > number do at = at - 1 end
  if at > 0 and runs[at][2] >= number then
    runs[at][3] = math.min(runs[at][3] + 1, runs[at][2] - runs[at][1] + 1)
    return text_of(runs)
  end
  table.insert(runs, at + 1, {number, number, 1})
  if runs[at + 2] and runs[at + 2][1] == number + 1 then join(runs, at + 1) end
  if at > 0 and runs[at][2] == number - 1 then join(runs, at) end
  if #runs > 256 then join(runs, 1) end
  return text_of(runs)
end

local function within(run, after, up_to)
  return math.max(0, math.min(run[3], math.min(run[2], up_to) - math.max(run[1] - 1, after)))
end

local function above(text, number)
  local kept = {}
  for _, run in ipairs(runs_of(text)) do
    local count = within(run, number, run[2])
    if count > 0 then kept[#kept + 1] = {math.max(run[1], number + 1), run[2], count} end
  end
  return text_of(kept)
end

local function count_between(text, after, up_to)
  local count = 0
  for _, run in ipairs(runs_of(text)) do count = count + within(run, after, up_to) end
  return count
end
"""

MESSAGES: Final = """
-- An entry of a stream is {id, {'payload', payload, 'stored_ms', ms, 'timestamp_ms', ms, and further fields}}.

local function number_of(entry) return tonumber(string.match(entry[1], '^%d+')) end

-- The further fields by name; nil if there are none.
local function more_of(entry)
  local fields, found = entry[2], {}
  if #fields <= 6 then return nil end
  for at = 7, #fields, 2 do found[fields[at]] = fields[at + 1] end
  return found
end

-- The size of its payload, which may be stored elsewhere.
local function size_of(entry, more)
  return more and tonumber(more.size) or #(entry[2][2] or '')
end

-- Calls a function with each message of a stream from one number to another, until it returns true.
local function each(stream, from, to, visit)
  local at = whole(from)
  while true do
    local chunk = try('XRANGE', stream, at, to, 'COUNT', 50) or {}
    for _, entry in ipairs(chunk) do
      if visit(entry, number_of(entry)) then return end
    end
    if #chunk < 50 then return end
    at = '(' .. chunk[50][1]
  end
end
"""

BOXES: Final = """
local rebuilding = lazily(function()

-- The number of the messages left in a stream, their size, the first and the last number; nil if there are none.
local function left_in(stream)
  local count, size, first = 0, 0, nil
  each(stream, 0, '+', function(entry, number)
    count, size, first = count + 1, size + size_of(entry, more_of(entry)), first or number
  end)
  if not first then return nil end
  local info, last = redis.call('XINFO', 'STREAM', stream), first
  for at = 1, #info, 2 do
    if info[at] == 'last-generated-id' then last = tonumber(string.match(info[at + 1], '^%d+')) end
  end
  return {count = count, size = size, first = first, last = last}
end

-- Rebuild a box that something else removed. Returns false if there was none.
local function rebuild(name, key)
  if not try('ZSCORE', root .. 'due', name) then return false end
  begin_although_full()
  local base, given = mailbox.given, mailbox.given
  local normal, high = left_in(root .. 'm:' .. name), left_in(root .. 'h:' .. name)
  if normal or high then base = 0 end
  -- Of a lane that is gone nothing is known: one message counts as missed. The numbers before it do not.
  local unknown, before = {first = given + 2, last = given + 1}, given > 0 and base == 0 and '1-' .. whole(given) or ''
  -- But if only the lane of high priority is gone, it was probably never used.
  local unused = {first = given + 1, last = given}
  local n, h = normal or unknown, high or unused
  local fields = {'base', whole(base), 'touched', now, 'more', '1',
    'bytes', whole((normal and normal.size or 0) + (high and high.size or 0)),
    'last', whole(n.last), 'gone', whole(n.first - 1), 'written', whole(normal and n.first - 1 or base),
    'hlast', whole(h.last), 'hgone', whole(h.first - 1), 'hwritten', whole(h.first - 1),
    'retracted', normal and '' or before, 'hretracted', high and '' or before}
  redis.call('HSET', key, unpack(fields))
  -- The cuts of earlier epochs are lost: limit their positions to the messages that are gone.
  if mailbox.epoch > 0 then
    local epoch, cut = whole(mailbox.epoch) .. ':', normal and n.first - 1 or base
    redis.call('HSET', key, 'cuts', epoch .. whole(cut), 'hcuts', epoch .. whole(h.first - 1))
  end
  mailbox.given = math.max(given, n.last, h.last)
  return true
end

return {rebuild = rebuild, left_in = left_in}
end)

-- Reads what a plain box lacks, if it was not read before. Returns false if it is unusable.
local function extend(box)
  if box.high or box.is_foreign then return not box.is_foreign end
  local found = redis.call('HMGET', box.key, 'base', 'acked', 'hlast', 'hgone', 'hacked', 'hcuts', 'retracted',
    'hretracted', 'written', 'hwritten')
  local base = found[1]
  local written, hwritten = found[9] or base, found[10] or base
  local last, gone, acked = found[3] or base, found[4] or base, found[5] or base
  if not is_sound(box.key, base, found[2] or '0', last, gone, acked, written, hwritten) then
    box.is_foreign = true
    return false
  end
  box.normal.acked, box.normal.retracted = tonumber(found[2] or base), found[7] or ''
  box.normal.confirmed = tonumber(found[2] or written)
  box.high = {letter = 'h', stream = root .. 'h:' .. box.name, last = tonumber(last), gone = tonumber(gone),
    acked = tonumber(acked), written = tonumber(hwritten), cuts = found[6], retracted = found[8] or '',
    confirmed = found[2] and tonumber(acked) or tonumber(hwritten)}
  return true
end

-- A box is its own normal lane: one table is made faster than two.
local function new_box(name, key, last, gone, bytes, cuts, gone_stored)
  local box = {name = name, key = key, bytes = bytes, high = false, is_touched = false, gone_stored = gone_stored,
    letter = 'n', stream = root .. 'm:' .. name, last = last, gone = gone, cuts = cuts}
  box.normal = box
  return box
end

-- Returns a box; nil if there is none. An unusable one has only is_foreign.
--   normal, high: its lanes, with letter, stream, last, gone and cuts. Only a box that is not plain has the second, and
--   in each lane acked (or the lane's base), retracted, and confirmed as in rules/box.py
-- Also returns the values of further fields, after five others.
local function load(name, ...)
  local key = root .. 'b:' .. name
  local found, is_foreign = try('HMGET', key, 'last', 'gone', 'bytes', 'cuts', 'more', ...)
  if is_foreign then return {is_foreign = true} end
  if not found[1] then
    if not rebuilding().rebuild(name, key) then return nil end
    found = redis.call('HMGET', key, 'last', 'gone', 'bytes', 'cuts', 'more', ...)
  end
  if not is_sound(key, found[1], found[2], found[3]) then return {is_foreign = true} end
  local gone = tonumber(found[2])
  local box = new_box(name, key, tonumber(found[1]), gone, tonumber(found[3]), found[4], gone)
  if found[5] then extend(box) end
  return box, found
end

-- The number up to which the device of a plain box has its messages for sure, as in rules/box.py.
local function confirmed_of(box)
  local found = redis.call('HMGET', box.key, 'acked', 'written', 'base')
  return tonumber(found[1] or found[2] or found[3]) or 0
end

-- A new box begins above all numbers ever given.
local function create(name)
  local key, base = root .. 'b:' .. name, mailbox.given
  redis.call('DEL', root .. 'm:' .. name, root .. 'h:' .. name, root .. 'x:' .. name, root .. 'l:' .. name,
    root .. 'k:' .. name, root .. 'i:' .. name)
  redis.call('HSET', key, 'base', whole(base), 'written', whole(base))
  return new_box(name, key, base, base, 0)
end

local function save(box, ...)
  local normal, high = box.normal, box.high
  if box.bytes ~= 0 and normal.gone >= normal.last and (not high or high.gone >= high.last) then
    -- A gateway of the previous release counts shared payloads, and the high lane, wrongly.
    mailbox.bytes, box.bytes = mailbox.bytes - box.bytes, 0
  end
  if high then
    redis.call('HSET', box.key, 'last', whole(normal.last), 'gone', whole(normal.gone), 'bytes', whole(box.bytes),
      'more', '1', 'hlast', whole(high.last), 'hgone', whole(high.gone),
      'retracted', normal.retracted, 'hretracted', high.retracted, ...)
  elseif normal.gone == box.gone_stored then
    redis.call('HSET', box.key, 'last', whole(normal.last), 'bytes', whole(box.bytes), ...)
  else
    redis.call('HSET', box.key, 'last', whole(normal.last), 'gone', whole(normal.gone), 'bytes', whole(box.bytes), ...)
  end
end
"""

TRIM: Final = """
-- Delete the messages of a lane up to gone.
local function trim(lane)
  if lane.gone >= lane.last then
    redis.call('DEL', lane.stream)
  else
    try('XTRIM', lane.stream, 'MINID', '=', whole(lane.gone + 1))
  end
end
"""

LEAVING: Final = """
-- Skip numbers that are unused: raise gone to the number before the first message.
local function advance(lane)
  local first = try('XRANGE', lane.stream, whole(lane.gone + 1), '+', 'COUNT', 1) or {}
  lane.gone = first[1] and number_of(first[1]) - 1 or lane.last
  if not first[1] then try('DEL', lane.stream) end
end

-- Remove a message from the indexes of its box.
local function forget(box, lane, number, more)
  local place = lane.letter .. whole(number)
  if more.expires then try('ZREM', root .. 'x:' .. box.name, place) end
  if more.low then try('ZREM', root .. 'l:' .. box.name, whole(number)) end
  if more.key and try('HGET', root .. 'k:' .. box.name, more.key) == place then
    try('HDEL', root .. 'k:' .. box.name, more.key)
  end
end

-- Count a message out of its box, which is not plain. Its entry is deleted by the caller.
local function count_out(box, lane, entry, number)
  local more = more_of(entry)
  if more then forget(box, lane, number, more) end
  local size = size_of(entry, more)
  box.bytes, mailbox.bytes, mailbox.messages = box.bytes - size, mailbox.bytes - size, mailbox.messages - 1
end

-- Remove one message, wherever it is in a box that is not plain.
local function drop(box, lane, entry)
  local number = number_of(entry)
  count_out(box, lane, entry, number)
  redis.call('XDEL', lane.stream, entry[1])
  if number <= lane.gone + 1 then advance(lane) end
end

-- The message in a place such as 'n12', and its lane; nil if it has left the box.
local function find(box, place)
  local lane = string.sub(place, 1, 1) == 'h' and box.high or box.normal
  local number = string.sub(place, 2)
  return (try('XRANGE', lane.stream, number, number) or {})[1], lane
end

-- Remove one message, which does not count as missed.
local function retract(box, lane, entry)
  local number = number_of(entry)
  if number > lane.acked then lane.retracted = retracted().with_number(lane.retracted, number) end
  drop(box, lane, entry)
end
"""
