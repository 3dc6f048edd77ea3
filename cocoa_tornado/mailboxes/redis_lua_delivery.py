"""Lua that stores one message in one box of the Redis mailbox, and keeps the box within its limits."""

from __future__ import annotations

from typing import Final

LIMITS: Final = """
local limits = {}

-- Messages have been dropped. Those that a device which never acknowledges has been written are not lost.
local function note_dropped(box, lost, retired)
  if lost > 0 then box.lost = (box.lost or 0) + lost end
  mailbox.retired = mailbox.retired + retired
end

-- The box is to be saved.
local function touch(box)
  if box.is_touched then return end
  try('ZADD', root .. 'due', 'NX', now, box.name)
  box.is_touched = true
end

-- Drop the oldest messages of a plain box while it is too full. Done once, after its last message.
local function trim_oldest(box)
  local lane = box.normal
  if lane.last - lane.gone <= limits.messages and box.bytes <= limits.bytes then return end
  local gone, left = lane.gone, box.bytes
  local function is_over()
    return lane.last - gone > limits.messages or (left > limits.bytes and lane.last - gone > 1)
  end
  while is_over() do
    local count = math.max(4, math.min(100, lane.last - gone - limits.messages))
    local oldest = redis.call('XRANGE', lane.stream, whole(gone + 1), '+', 'COUNT', count)
    if #oldest == 0 then gone, left = lane.last - 1, 0 end
    for _, entry in ipairs(oldest) do
      if is_over() then gone, left = number_of(entry), left - size_of(entry, more_of(entry)) end
    end
  end
  local dropped = gone - lane.gone
  if dropped == 0 then return end
  local lost = math.max(0, gone - math.max(lane.gone, confirmed_of(box)))
  note_dropped(box, lost, dropped - lost)
  mailbox.messages = mailbox.messages - dropped
  mailbox.bytes, box.bytes, lane.gone = mailbox.bytes - (box.bytes - left), left, gone
  trim(lane)
end
"""

SHRINK: Final = """
-- The message to drop from a box that is not plain: a low one, else a normal one, else a high one; the oldest.
local function first_to_drop(box, newest)
  while true do
    local low = (try('ZRANGE', root .. 'l:' .. box.name, 0, 0) or {})[1]
    if not low then break end
    local entry, lane = find(box, 'n' .. low)
    if entry then return entry, lane end
    redis.call('ZREM', root .. 'l:' .. box.name, low)
  end
  for _, lane in ipairs({box.normal, box.high}) do
    for _, entry in ipairs(try('XRANGE', lane.stream, whole(lane.gone + 1), '+', 'COUNT', 2) or {}) do
      if lane.letter .. whole(number_of(entry)) ~= newest then return entry, lane end
    end
  end
end

-- Drop messages of a box that is not plain while it is too full. Done after each of its messages.
local function shrink(box, newest)
  local normal, high = box.normal, box.high
  local function is_over(count)
    return count > limits.messages or (box.bytes > limits.bytes and count > 1)
  end
  if not is_over(normal.last - normal.gone + high.last - high.gone) then return end
  local count = (try('XLEN', normal.stream) or 0) + (try('XLEN', high.stream) or 0)
  while is_over(count) do
    local entry, lane = first_to_drop(box, newest)
    if not entry then return end
    drop(box, lane, entry)
    local is_lost = number_of(entry) > lane.confirmed
    note_dropped(box, is_lost and 1 or 0, is_lost and 0 or 1)
    count = count - 1
  end
end
"""

IDS: Final = """
-- The last 1,000 ids of a device are in a hash. '=<id>' has '<n> <ms> <place>', and '@<n>' the id that was the n-th;
-- '#' is the newest n, '<' the oldest one that is there, and '+' the number of ids.
local function is_known(box, id)
  local found = try('HGET', root .. 'i:' .. box.name, '=' .. id)
  if not found then return false end
  local ms, place = string.match(found, '^%d+ (%d+) (.+)$')
  return ms and (now - ms < 600000 or find(box, place) ~= nil)
end

local function forget_id(key, n)
  local id = redis.call('HGET', key, '@' .. whole(n))
  local found = id and redis.call('HGET', key, '=' .. id)
  redis.call('HDEL', key, '@' .. whole(n))
  -- One that was named again has a newer n.
  if not found or string.match(found, '^%d+') ~= whole(n) then return 0 end
  redis.call('HDEL', key, '=' .. id)
  return 1
end

local function remember(box, id, place)
  local key = root .. 'i:' .. box.name
  local found, is_foreign = try('HMGET', key, '#', '<', '+', '=' .. id)
  if is_foreign then return end
  local n = (tonumber(found[1]) or 0) + 1
  local oldest, count = tonumber(found[2]) or n, tonumber(found[3]) or 0
  if not found[4] then count = count + 1 end
  redis.call('HSET', key, '#', whole(n), '@' .. whole(n), id, '=' .. id, whole(n) .. ' ' .. now .. ' ' .. place)
  -- Places of ids that were named again are bounded, too, if the oldest id never is.
  -- Nor does a count that is wrong keep it from ending.
  while oldest < n and (count > 1000 or n - oldest >= 2000) do
    count, oldest = count - forget_id(key, oldest), oldest + 1
  end
  redis.call('HSET', key, '<', whole(oldest), '+', whole(count))
end
"""

SPECIAL: Final = """
-- A message for deliver: its payload as it stands in the stream, its size, and its options. A transient one has no
-- payload.
--   fields: what its entry has beyond those of a plain message
local function message_of(timestamp, payload, expires, priority, key, id)
  local message = {timestamp = timestamp, payload = payload, size = #payload, priority = priority, fields = {},
    expires = expires ~= '' and tonumber(expires) > 0 and tonumber(expires) or nil,
    key = key ~= '' and key or nil, id = id ~= '' and id or nil}
  message.is_special = message.expires or message.key or message.id or priority ~= 'normal'
  local fields = message.fields
  local function add(name, value)
    fields[#fields + 1], fields[#fields + 2] = name, value
  end
  if message.expires then add('expires', expires) end
  if priority == 'low' then add('low', '1') end
  if message.key then add('key', key) end
  return message
end

-- Before a special message is stored. Returns what deliver does, if that is not a number.
local function prepare(box, message)
  if not box.high and not box.is_foreign then
    trim_oldest(box)
    extend(box)
  end
  if box.is_foreign then return '-' end
  if message.id and is_known(box, message.id) then return '=' end
  local place = message.key and try('HGET', root .. 'k:' .. box.name, message.key)
  local entry, lane = nil, nil
  if place then entry, lane = find(box, place) end
  if entry then
    retract(box, lane, entry)
    mailbox.collapsed = mailbox.collapsed + 1
  end
  if not message.transient then return end
  touch(box)
  lane = message.priority == 'high' and box.high or box.normal
  if message.id then remember(box, message.id, lane.letter .. '0') end
  return '~' .. whole(lane.last)
end

-- After it has been stored.
local function add_to_indexes(box, message, place)
  local name, number = box.name, string.sub(place, 2)
  if message.expires then
    try('ZADD', root .. 'x:' .. name, message.expires, place)
    -- Boxes are due limits.ttl after their scores.
    try('ZADD', root .. 'due', 'LT', message.expires - limits.ttl, name)
  end
  if message.priority == 'low' then try('ZADD', root .. 'l:' .. name, number, number) end
  if message.key then try('HSET', root .. 'k:' .. name, message.key, place) end
  if message.id then remember(box, message.id, place) end
end

-- Something else changed the stream, so that it contradicts the box. New messages must be stored all the same.
local function replace_stream(box, lane, fault)
  if string.find(fault, 'WRONGTYPE', 1, true) then note(lane.stream) end
  redis.call('DEL', lane.stream)
  local other = box.high and (lane.letter == 'h' and box.normal or box.high)
  local left = other and rebuilding().left_in(other.stream)
  local gone, freed = lane.last - lane.gone, box.bytes - (left and left.size or 0)
  box.lost, mailbox.messages, mailbox.bytes = (box.lost or 0) + gone, mailbox.messages - gone, mailbox.bytes - freed
  lane.gone, box.bytes = lane.last, box.bytes - freed
end

-- With a lane's first message of an epoch, record its last number before it. Beyond 8 cuts the two oldest are merged:
-- an old position may then resolve to an earlier one, never to a later one.
local function cut(box, lane, epoch)
  local cuts = (lane.cuts and lane.cuts .. ' ' or '') .. epoch .. ':' .. whole(lane.last)
  local _, count = string.gsub(cuts, ':', '')
  if count > 8 then
    cuts = string.gsub(cuts, '^%d+:(%d+) (%d+):(%d+)', function(one, later, other)
      return later .. ':' .. whole(math.min(tonumber(one), tonumber(other)))
    end)
  end
  lane.cuts = cuts
  redis.call('HSET', box.key, lane.letter == 'h' and 'hcuts' or 'cuts', cuts)
end
"""

DELIVER: Final = """
-- Stores a message. Returns its number; '-' if the box is unusable; '=' if the device has had one with its id. A
-- transient message is not stored: returns '~' and the number that it comes after.
local function deliver(box, message)
  local refusal = box.is_foreign and '-' or message.is_special and special().prepare(box, message)
  if refusal then return refusal end
  local lane = message.priority == 'high' and box.high or box.normal
  touch(box)
  if mailbox.epoch > 0 and not lane.is_cut then
    local epoch = whole(mailbox.epoch)
    if not lane.cuts or string.match(lane.cuts, '(%d+):%d+$') ~= epoch then special().cut(box, lane, epoch) end
    lane.is_cut = true
  end
  local number = whole(lane.last + 1)
  local id, fields = number .. '-0', message.fields
  local stored
  if fields then
    stored = redis.pcall('XADD', lane.stream, id, 'payload', message.payload, 'stored_ms', now,
      'timestamp_ms', message.timestamp, unpack(fields))
  else
    stored = redis.pcall('XADD', lane.stream, id, 'payload', message.payload, 'stored_ms', now,
      'timestamp_ms', message.timestamp)
  end
  if type(stored) == 'table' and stored.err then
    special().replace_stream(box, lane, stored.err)
    redis.call('XADD', lane.stream, id, 'payload', message.payload, 'stored_ms', now,
      'timestamp_ms', message.timestamp, unpack(fields or {}))
  end
  lane.last = lane.last + 1
  mailbox.given, mailbox.messages = mailbox.given + 1, mailbox.messages + 1
  box.bytes, mailbox.bytes = box.bytes + message.size, mailbox.bytes + message.size
  if message.is_special then special().add_to_indexes(box, message, lane.letter .. number) end
  if box.high then special().shrink(box, lane.letter .. number) end
  return number
end

local boxes, loaded = {}, {}

-- The box of a device; read once in a script.
--   may_create: if there is none; without it, nil is returned then
local function box_of(name, may_create)
  local box = boxes[name]
  if not box then
    box = load(name) or may_create and create(name) or nil
    boxes[name] = box
    loaded[#loaded + 1] = box
  end
  return box
end

-- Returns how many messages full boxes have dropped: names of devices, each with its count.
local function save_boxes()
  local lost = {}
  for _, box in ipairs(loaded) do
    if box.is_touched then
      if not box.high then trim_oldest(box) end
      save(box, 'touched', now)
    end
    if box.lost then lost[#lost + 1], lost[#lost + 2] = box.name, box.lost end
  end
  return lost
end
"""
