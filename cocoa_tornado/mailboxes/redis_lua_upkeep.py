"""The scripts that delete: what devices have acknowledged, what has expired, and what is no longer used."""

from __future__ import annotations

from typing import Final

MARK: Final = """
-- ARGV: key and epoch, now (ms); then for each mark: device, acknowledged in the normal and in the high lane, written
-- likewise (either pair may be empty), epoch of all
local why = enter()
if why then return {why} end

-- The current number of a position, as in rules/box.py, Lane.settled.
local function settled(lane, number, epoch)
  number = math.min(tonumber(number), lane.last)
  for later, kept in string.gmatch(lane.cuts or '', '(%d+):(%d+)') do
    if tonumber(later) > tonumber(epoch) then number = math.min(number, tonumber(kept)) end
  end
  return number
end

-- Delete the messages of a lane up to a number; returns how many.
local function receive(box, lane, number)
  local before, count, size = lane.gone, 0, 0
  if number <= before then return 0 end
  lane.gone = number
  if box.high then
    each(lane.stream, before + 1, whole(number), function(entry, at)
      leaving().count_out(box, lane, entry, at)
      count = count + 1
    end)
    trim(lane)
    leaving().advance(lane)
    return count
  end
  if number >= lane.last then
    size = box.bytes
  else
    each(lane.stream, before + 1, whole(number), function(entry) size = size + size_of(entry, more_of(entry)) end)
  end
  count = number - before
  box.bytes, mailbox.bytes, mailbox.messages = box.bytes - size, mailbox.bytes - size, mailbox.messages - count
  trim(lane)
  return count
end

local function acknowledge(box, lane, number, acked)
  number = math.max(number, acked)
  local count = receive(box, lane, number)
  if box.high then lane.retracted = runs().above(lane.retracted, number) end
  return whole(number), count
end

local function mark(name, acked, hacked, written, hwritten, epoch)
  local box = load(name)
  if not box or box.is_foreign then return 0 end
  local found, removed, count = redis.call('HMGET', box.key, 'base', 'acked', 'written', 'hacked', 'hwritten'), 0, 0
  local base = found[1]
  if not is_sound(box.key, base, found[2] or '0', found[3]) then return 0 end
  if written ~= '' then
    local number = settled(box.normal, written, epoch)
    if number > tonumber(found[3]) then redis.call('HSET', box.key, 'written', whole(number)) end
    if box.high then
      number = settled(box.high, hwritten, epoch)
      if number > tonumber(found[5] or base) then redis.call('HSET', box.key, 'hwritten', whole(number)) end
    end
  end
  if acked ~= '' then
    local number, hnumber
    number, removed = acknowledge(box, box.normal, settled(box.normal, acked, epoch), tonumber(found[2] or base))
    if box.high then
      hnumber, count = acknowledge(box, box.high, settled(box.high, hacked, epoch), tonumber(found[4] or base))
      save(box, 'acked', number, 'hacked', hnumber)
    else
      save(box, 'acked', number)
    end
  end
  return removed + count
end

begin_although_full()
local removed = 0
for at = 3, #ARGV, 6 do removed = removed + mark(unpack(ARGV, at, at + 5)) end
leave()
return {'marked', removed, whole(mailbox.messages), whole(mailbox.bytes), foreign}
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
local removed = 0

-- Delete the oldest messages of a lane while they have expired. Returns when the first that has not was stored.
local function expire_oldest(box, lane)
  local gone, size, stored = lane.gone, 0, nil
  local before = gone
  each(lane.stream, gone + 1, '+', function(entry, number)
    local ms = tonumber(entry[2][4]) or 0 -- an entry of another program has no time: treat it as expired
    if ms > expired then stored = ms end
    if ms > expired or removed >= most then return true end
    gone, removed = number, removed + 1
    if box.high then leaving().count_out(box, lane, entry, number) else size = size + size_of(entry, more_of(entry)) end
  end)
  if not stored and removed < most and gone < lane.last then
    -- Something else has deleted the rest.
    if not box.high then removed, size = removed + lane.last - gone, box.bytes end
    gone = lane.last
  end
  if gone == before then return stored end
  lane.gone = gone
  if not box.high then
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
      leaving().drop(box, lane, entry)
      removed, box.is_changed = removed + 1, true
    end
    try('ZREM', key, place)
  end
  return tonumber((try('ZRANGE', key, 0, 0, 'WITHSCORES') or {})[2])
end

local function owes_a_gap(lane)
  return lane.gone - lane.confirmed - runs().count_between(lane.retracted, lane.confirmed, lane.gone) > 0
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
return {'swept', removed, whole(mailbox.messages), whole(mailbox.bytes), whole(fans), foreign}
"""
