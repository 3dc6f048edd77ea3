"""Lua for the members of audiences, and for the fan-outs to them, in the Redis mailbox.

Nothing here relies on a gateway's memory: any gateway may carry out any step.
"""

from __future__ import annotations

from typing import Final

FAN_OUTS: Final = """
-- What takes the place of a payload that is stored once for all of a fan-out. A gateway of an earlier release, which
-- does not know of that, notifies the device that it has missed a message.
local ELSEWHERE = '{"type":"gap","missed":1}'

-- Fan-outs that are not complete, oldest first, as far as they have been asked for; and those to report.
local pending, reported = nil, {}

local META = {'audience', 'excluded', 'timestamp', 'options', 'expires', 'priority', 'key', 'name', 'transient', 'size',
  'shared'}

local function with_message(fan)
  local message = special().message_of(fan.timestamp, fan.payload or '', fan.expires, fan.priority, fan.key, fan.name)
  local fields = message.fields
  message.size, message.transient = tonumber(fan.size), fan.transient == '1'
  message.is_special = message.is_special or message.transient
  if fan.audience ~= 'all' then fields[#fields + 1], fields[#fields + 2] = 'audience', fan.audience end
  if fan.shared == '1' then
    fields[#fields + 1], fields[#fields + 2] = 'shared', fan.id
    fields[#fields + 1], fields[#fields + 2] = 'size', fan.size
    message.payload = ELSEWHERE
  end
  fan.message, fan.numbers, fan.names, fan.tally = message, {}, {}, 0
  return fan
end

local function payload_of(fan)
  if not fan.payload then
    fan.payload = fan.shared == '1' and try('GET', root .. 'p:' .. fan.id)
      or try('HGET', root .. 'f:' .. fan.id, 'payload') or ''
  end
  return fan.payload
end

-- Reads a fan-out; nil if something else has changed or removed it.
local function load_fan(id)
  local key = root .. 'f:' .. id
  local found = try('HMGET', key, 'up_to', 'done', 'recipients', unpack(META))
  if not found or not found[1] or not is_sound(key, found[1], found[2], found[3]) then return nil end
  local fan = {id = id, up_to = found[1], done = found[2], recipients = tonumber(found[3])}
  for at, name in ipairs(META) do fan[name] = found[at + 3] or '' end
  return with_message(fan)
end

local function all_pending()
  if not pending then
    pending = {}
    for _, id in ipairs(try('LRANGE', root .. 'fans', 0, -1) or {}) do
      local fan = load_fan(id)
      if fan then
        pending[#pending + 1] = fan
      else
        redis.call('LREM', root .. 'fans', 0, id)
      end
    end
  end
  return pending
end

local function report(fan)
  if not fan.is_reported then reported[#reported + 1] = fan end
  fan.is_reported = true
end

-- Store a fan-out's message for one device.
local function give(fan, box)
  if fan.message.payload == '' then fan.message.payload = payload_of(fan) end
  local number = deliver(box, fan.message)
  fan.tally = fan.tally + 1
  fan.names[fan.tally], fan.numbers[fan.tally] = box.name, number
  fan.recipients = fan.recipients + 1
  report(fan)
end

-- Before a message is stored for a device: store those of the older fan-outs that it is still to get, which are the
-- first so many of the pending ones.
local function pull(box, name, older)
  for at = (box.pulled or 0) + 1, older do
    local fan = pending[at]
    local score = tonumber(try('ZSCORE', root .. 'a:' .. fan.audience, name) or '0')
    if score > tonumber(fan.done) and score <= tonumber(fan.up_to)
      and try('SADD', root .. 'd:' .. fan.id, name) == 1 then give(fan, box) end
  end
  box.pulled = math.max(box.pulled or 0, older)
end

local function pull_all(box, name) pull(box, name, #all_pending()) end

-- Store a fan-out's message for its next recipients, at most so many.
local function step(fan, most, older)
  local rows = try('ZRANGEBYSCORE', root .. 'a:' .. fan.audience, '(' .. fan.done, fan.up_to, 'WITHSCORES',
    'LIMIT', 0, most) or {}
  local names = {}
  for at = 1, #rows, 2 do names[#names + 1] = rows[at] end
  local has_it = #names > 0 and try('SMISMEMBER', root .. 'd:' .. fan.id, unpack(names)) or {}
  for at, name in ipairs(names) do
    if has_it[at] ~= 1 then
      local box = box_of(name, true)
      pull(box, name, older)
      give(fan, box)
    end
  end
  if #names > 0 then fan.done = rows[#rows] end
  fan.is_last = #names < most or fan.done == fan.up_to
  report(fan)
end

local function step_oldest(most)
  local oldest = all_pending()[1]
  if oldest then step(oldest, most, 0) end
end

-- Record a fan-out. A small one is carried out at once.
local function begin(fan, excluded, in_place)
  local members = root .. 'a:' .. fan.audience
  local count = try('ZCARD', members) or 0
  fan.up_to = (try('ZREVRANGE', members, 0, 0, 'WITHSCORES') or {})[2] or '0'
  fan.done, fan.recipients, fan.size = '0', 0, whole(#fan.payload)
  fan.shared = #fan.payload >= 1024 and count > 1 and fan.transient ~= '1' and '1' or ''
  with_message(fan)
  local key = root .. 'f:' .. fan.id
  if fan.shared == '1' then redis.call('SET', root .. 'p:' .. fan.id, fan.payload) end
  for at = 1, #excluded, 1000 do
    redis.call('SADD', root .. 'd:' .. fan.id, unpack(excluded, at, math.min(#excluded, at + 999)))
  end
  if count <= in_place then
    step(fan, count + 1, #all_pending())
    return count
  end
  local fields = {'up_to', fan.up_to, 'done', '0', 'recipients', '0'}
  for _, name in ipairs(META) do fields[#fields + 1], fields[#fields + 2] = name, fan[name] end
  redis.call('HSET', key, 'payload', fan.shared == '1' and '' or fan.payload, unpack(fields))
  local older = all_pending()
  local _, is_foreign = try('RPUSH', root .. 'fans', fan.id)
  if is_foreign then
    step(fan, count + 1, #older)
    return count
  end
  older[#older + 1] = fan
  return 0
end

-- Write how far the fan-outs have come. Returns what to report of each: its id, whether it is complete, its recipients
-- so far, the devices and their numbers, and, unless the gateway knows it, the fan-out itself.
local function save_fans(ids_known)
  local reports, left, known = {}, 0, {}
  for id in string.gmatch(ids_known, '%S+') do known[id] = true end
  for at, fan in ipairs(reported) do
    local about = {}
    if not known[fan.id] then
      about = {fan.audience, fan.excluded, payload_of(fan), fan.timestamp, fan.options, fan.expires}
    end
    local key = root .. 'f:' .. fan.id
    if fan.is_last then
      redis.call('DEL', key, root .. 'd:' .. fan.id)
      try('LREM', root .. 'fans', 1, fan.id)
      -- Messages that name the payload have expired long before.
      if fan.shared == '1' then try('PEXPIRE', root .. 'p:' .. fan.id, whole(2 * limits.ttl + 86400000)) end
    else
      redis.call('HSET', key, 'done', fan.done, 'recipients', whole(fan.recipients))
    end
    reports[at] = {fan.id, fan.is_last and 1 or 0, fan.recipients, fan.names, table.concat(fan.numbers, ' '), about}
  end
  for _, fan in ipairs(all_pending()) do left = left + (fan.is_last and 0 or 1) end
  return reports, left
end

"""
