"""The scripts that delete: what devices have acknowledged, what has expired, and what is no longer used."""

from __future__ import annotations

from typing import Final

MARK: Final = """
-- ARGV: key and epoch, now (ms), the run id of this Redis; then for each mark: device, acknowledged, written, epoch of
-- both, who must hold the device for what was written to count (or empty). Either number may be empty; it is a number
-- of the normal lane, or that and one of the high lane
local why = enter()
if why then return {why} end

local function numbers_of(text)
  local number = tonumber(text)
  if number then return number, 0 end
  local normal, high = string.match(text, '^(%d+) (%d+)$')
  return tonumber(normal), tonumber(high)
end

-- The current number of a position, as in rules/box.py, Lane.settled.
local function settled(lane, number, epoch)
  number = math.min(number, lane.last)
  if lane.cuts then
    for later, kept in string.gmatch(lane.cuts, '(%d+):(%d+)') do
      if tonumber(later) > tonumber(epoch) then number = math.min(number, tonumber(kept)) end
    end
  end
  return number
end

-- Delete the messages of a plain box up to a number; returns how many.
local function receive(box, number)
  local lane, size = box.normal, box.bytes
  local count = number - lane.gone
  if count <= 0 then return 0 end
  if number < lane.last then
    size = 0
    each(lane.stream, lane.gone + 1, whole(number), function(entry) size = size + size_of(entry, more_of(entry)) end)
  end
  box.bytes, mailbox.bytes, mailbox.messages = box.bytes - size, mailbox.bytes - size, mailbox.messages - count
  lane.gone = number
  trim(lane)
  return count
end

-- The same for one lane of a box that is not plain.
local function receive_of(box, lane, number)
  lane.retracted = retracted().above(lane.retracted, number)
  if number <= lane.gone then return 0 end
  local before, count = lane.gone, 0
  lane.gone = number
  each(lane.stream, before + 1, whole(number), function(entry, at)
    leaving().count_out(box, lane, entry, at)
    count = count + 1
  end)
  trim(lane)
  leaving().advance(lane)
  return count
end

local function mark(name, acked, written, epoch)
  local box, found = load(name, 'base', 'acked', 'written')
  if not found or box.is_foreign or not is_sound(box.key, found[6], found[7] or '0', found[8]) then return 0 end
  local key, normal, high = box.key, box.normal, box.high
  if written ~= '' then
    local number, hnumber = numbers_of(written)
    number = settled(normal, number, epoch)
    if number > tonumber(found[8]) then redis.call('HSET', key, 'written', whole(number)) end
    hnumber = high and settled(high, hnumber, epoch) or 0
    if high and hnumber > high.written then redis.call('HSET', key, 'hwritten', whole(hnumber)) end
  end
  if acked == '' then return 0 end
  local number, hnumber = numbers_of(acked)
  number = math.max(settled(normal, number, epoch), tonumber(found[7] or found[6]))
  if not high then
    local count = receive(box, number)
    redis.call('HSET', key, 'acked', whole(number), 'gone', whole(normal.gone), 'bytes', whole(box.bytes))
    return count
  end
  hnumber = math.max(settled(high, hnumber, epoch), high.acked)
  local count = receive_of(box, normal, number) + receive_of(box, high, hnumber)
  save(box, 'acked', whole(number), 'hacked', whole(hnumber))
  return count
end

begin_although_full()
local removed, without_effect = 0, 0
for at = 4, #ARGV, 5 do
  local written = ARGV[at + 2]
  if written ~= '' and superseded(ARGV[at], ARGV[3], ARGV[at + 4]) then
    written, without_effect = '', without_effect + 1
  end
  if written ~= '' or ARGV[at + 1] ~= '' then
    removed = removed + mark(ARGV[at], ARGV[at + 1], written, ARGV[at + 3])
  end
end
leave()
return {'marked', removed, whole(mailbox.messages), whole(mailbox.bytes), without_effect, foreign}
"""

SWEEP: Final = """
-- ARGV: key and epoch, now (ms), the time (ms) up to which messages have expired, the time (ms) since which an empty
-- box is kept, the same for a box with a gap to report, the time (ms) since which members are known, ttl (ms), maximum
-- boxes, maximum messages, maximum members
local why = enter()
if why then return {why} end
local expired, ttl, most = tonumber(ARGV[3]), tonumber(ARGV[7]), tonumber(ARGV[9])
local names = try('ZRANGEBYSCORE', root .. 'due', '-inf', ARGV[3], 'LIMIT', 0, ARGV[8]) or {}
local strangers = try('ZRANGEBYSCORE', root .. 'known', '-inf', '(' .. ARGV[6], 'LIMIT', 0, ARGV[10]) or {}
if #names > 0 or #strangers > 0 then begin_although_full() end
local removed, retired = 0, 0

-- Delete the oldest messages of a lane while they have expired. Returns when the first that has not was stored.
local function expire_oldest(box, lane)
  local gone, size, stored = lane.gone, 0, nil
  local before = gone
  each(lane.stream, gone + 1, '+', function(entry, number)
    local ms = tonumber(entry[2][4]) or 0 -- an entry of another program has no time: treat it as expired
    if ms > expired then stored = ms end
    if ms > expired or removed >= most then return true end
    gone, removed = number, removed + 1
    if not box.high then
      size = size + size_of(entry, more_of(entry))
      return
    end
    leaving().count_out(box, lane, entry, number)
    if number <= lane.confirmed then retired = retired + 1 end
  end)
  if not stored and removed < most and gone < lane.last then
    -- Something else has deleted the rest.
    if not box.high then removed, size = removed + lane.last - gone, box.bytes end
    gone = lane.last
  end
  if gone == before then return stored end
  lane.gone = gone
  if not box.high then
    retired = retired + math.max(0, math.min(gone, confirmed_of(box)) - before)
    box.bytes, mailbox.bytes = box.bytes - size, mailbox.bytes - size
    mailbox.messages = mailbox.messages - (gone - before)
  end
  trim(lane)
  if box.high then leaving().advance(lane) end
  box.is_changed = true
  return stored
end

-- Delete the messages whose own ttl has ended. Returns when the next of them ends.
local function expire_own(box)
  local key = root .. 'x:' .. box.name
  for _, place in ipairs(try('ZRANGEBYSCORE', key, '-inf', '(' .. now, 'LIMIT', 0, most) or {}) do
    if removed >= most then break end
    local entry, lane = leaving().find(box, place)
    if entry then
      if number_of(entry) <= lane.confirmed then retired = retired + 1 end
      leaving().drop(box, lane, entry)
      removed, box.is_changed = removed + 1, true
    end
    try('ZREM', key, place)
  end
  return tonumber((try('ZRANGE', key, 0, 0, 'WITHSCORES') or {})[2])
end

local function owes_a_gap(lane)
  return lane.gone - lane.confirmed - retracted().count_between(lane.retracted, lane.confirmed, lane.gone) > 0
end

local function is_unused(box)
  if box.normal.gone < box.normal.last or box.high.gone < box.high.last then return false end
  if try('ZSCORE', root .. 'known', box.name) then return false end
  local touched = tonumber(redis.call('HGET', box.key, 'touched') or '0') or 0
  return touched < tonumber((owes_a_gap(box.normal) or owes_a_gap(box.high)) and ARGV[5] or ARGV[4])
end

local function remove(box)
  local name = box.name
  redis.call('DEL', box.key, root .. 'm:' .. name, root .. 'h:' .. name, root .. 'x:' .. name, root .. 'l:' .. name,
    root .. 'k:' .. name, root .. 'i:' .. name)
  redis.call('ZREM', root .. 'due', name)
end

local function sweep(name)
  local box = load(name)
  if not box or box.is_foreign then
    redis.call('ZADD', root .. 'due', now, name)
    return
  end
  local due, is_more = expire_oldest(box, box.normal), box.high
  if is_more then
    local hdue, own = expire_oldest(box, box.high), expire_own(box)
    due = math.min(due or hdue or tonumber(now), hdue or due or tonumber(now), own and own - ttl or tonumber(now))
  end
  if removed >= most then
    if box.is_changed then save(box) end
    return
  end
  if box.is_changed then save(box) end
  if extend(box) and is_unused(box) then
    remove(box)
  else
    redis.call('ZADD', root .. 'due', due and whole(due) or now, name)
  end
end

for _, name in ipairs(names) do
  sweep(name)
  if removed >= most then break end
end

for _, name in ipairs(strangers) do
  for audience in string.gmatch(try('HGET', root .. 'members', name) or '', '[^\\n]+') do
    try('ZREM', root .. 'a:' .. audience, name)
  end
  try('HDEL', root .. 'members', name)
  redis.call('ZREM', root .. 'known', name)
end
leave()
local fans = try('LLEN', root .. 'fans') or 0
return {'swept', removed, whole(mailbox.messages), whole(mailbox.bytes), whole(fans), retired, foreign}
"""
