"""The scripts that store: groups of messages, steps of fan-outs, and members."""

from __future__ import annotations

from typing import Final

APPEND: Final = """
-- ARGV: key and epoch, now (ms), gateway, group, maximum messages, maximum bytes, ttl (ms), ms to remember sources for,
-- fan-outs that the gateway knows, largest fan-out to carry out at once, counts of sources, devices and entries; then
-- the sources: name, version, replace (1/0), floor, count of runs, runs; the devices; the entries:
--   index of its device, timestamp, payload
--   '+', index of its device, timestamp, payload, expires, priority, collapse key, id
--   '~', index of its device, priority, collapse key, id: a transient message
--   '*', id of the fan-out, timestamp, payload, expires, priority, collapse key, id, '1' if it is transient, audience,
--     options, excluded devices as the gateway writes them, their count, their names
-- then, for each device whose server is to be woken: its bucket (of presence), its name
local why = enter()
if why then return {why} end
local answer_key = root .. 'answer:' .. ARGV[3]
local answer = redis.call('HMGET', answer_key, 'group', 'numbers', 'lost', 'collapsed', 'steps', 'rung', 'retired')
if answer[1] == ARGV[4] then
  return {'stored', answer[2], answer[3] and answer[3] ~= '' and cmsgpack.unpack(answer[3]) or {}, answer[4] or '0',
    whole(mailbox.given), whole(mailbox.messages), whole(mailbox.bytes), whole(try('LLEN', root .. 'fans') or 0),
    answer[5] and answer[5] ~= '' and cmsgpack.unpack(answer[5]) or {}, answer[6] or '',
    answer[7] or '0', foreign}
end
limits.messages, limits.bytes, limits.ttl = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local remember_ms, in_place = ARGV[8], tonumber(ARGV[10])
local sources, devices, entries = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])

-- The gateway's decision is valid only if its sources have not changed.
local at, runs_at = 14, {}
for i = 1, sources do
  local newest, is_foreign = try('LINDEX', root .. 'seen:' .. ARGV[at], -1)
  if not is_foreign then
    if (newest and string.sub(newest, 1, 16) or '') ~= ARGV[at + 1] then return {'stale'} end
    runs_at[i] = at
  end
  at = at + 5 + tonumber(ARGV[at + 4])
end

-- The first write: Redis rejects it if memory is full.
redis.call('HSET', answer_key, 'group', '')

mailbox.collapsed, mailbox.retired = 0, 0
local names_at, has_fans = at - 1, (try('LLEN', root .. 'fans') or 0) > 0
local function store(index, message)
  local name = ARGV[names_at + index]
  -- To a device without a box, a transient message without an id makes no difference.
  local box = box_of(name, not message.transient or message.id)
  if not box then return '~' .. whole(mailbox.given) end
  if has_fans and not box.is_foreign then fanning().pull_all(box, name) end
  return deliver(box, message)
end

local numbers, steps_left = {}, 500
local plain = {priority = 'normal'}
at = names_at + devices + 1
for i = 1, entries do
  local kind = ARGV[at]
  if kind == '+' then
    numbers[i] = store(tonumber(ARGV[at + 1]), special().message_of(unpack(ARGV, at + 2, at + 7)))
    at = at + 8
  elseif kind == '~' then
    local message = special().message_of('0', '', '', unpack(ARGV, at + 2, at + 4))
    message.transient, message.is_special = true, true
    numbers[i] = store(tonumber(ARGV[at + 1]), message)
    at = at + 5
  elseif kind == '*' then
    local fan = {id = ARGV[at + 1], timestamp = ARGV[at + 2], payload = ARGV[at + 3], expires = ARGV[at + 4],
      priority = ARGV[at + 5], key = ARGV[at + 6], name = ARGV[at + 7], transient = ARGV[at + 8],
      audience = ARGV[at + 9], options = ARGV[at + 10], excluded = ARGV[at + 11]}
    local count = tonumber(ARGV[at + 12])
    local excluded = {unpack(ARGV, at + 13, at + 12 + count)}
    steps_left = steps_left - fanning().begin(fan, excluded, math.min(in_place, steps_left))
    numbers[i], has_fans = '*', true
    at = at + 13 + count
  else
    plain.timestamp, plain.payload, plain.size = ARGV[at + 1], ARGV[at + 2], #ARGV[at + 2]
    numbers[i] = store(tonumber(kind), plain)
    at = at + 3
  end
  if numbers[i] == '-' then mailbox.given = mailbox.given + 1 end
end
local lost = save_boxes()

for _, at in pairs(runs_at) do
  local seen, floor, runs = root .. 'seen:' .. ARGV[at], tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  if ARGV[at + 2] == '1' then redis.call('DEL', seen) end
  for run = at + 5, at + 4 + runs do redis.call('RPUSH', seen, ARGV[run]) end
  while runs > 0 do
    local oldest = redis.call('LINDEX', seen, 0)
    if not oldest or struct.unpack('<i8', oldest, 17) + (#oldest - 24) / 8 > floor then break end
    redis.call('LPOP', seen)
  end
  if runs > 0 then redis.call('PEXPIRE', seen, remember_ms) end
end

local steps, left = {}, 0
if has_fans then steps, left = fanning().save_fans(ARGV[9]) end
leave()
local rung = ''
if at <= #ARGV then rung = bells().ring(at, ARGV[3]) end
local joined, collapsed = table.concat(numbers, ' '), whole(mailbox.collapsed)
redis.call('HSET', answer_key, 'group', ARGV[4], 'numbers', joined, 'collapsed', collapsed,
  'lost', #lost > 0 and cmsgpack.pack(lost) or '',
  'steps', #steps > 0 and cmsgpack.pack(steps) or '', 'rung', rung, 'retired', whole(mailbox.retired))
redis.call('EXPIRE', answer_key, 86400)
return {'stored', joined, lost, collapsed, whole(mailbox.given), whole(mailbox.messages), whole(mailbox.bytes),
  whole(left), steps, rung, whole(mailbox.retired), foreign}
"""

FAN_OUT: Final = """
-- ARGV: key and epoch, now (ms), gateway, id of this step, maximum messages, maximum bytes, ttl (ms), most recipients,
-- fan-outs that the gateway knows
local why = enter()
if why then return {why} end
local answer_key = root .. 'answer:' .. ARGV[3]
local answer = redis.call('HMGET', answer_key, 'step', 'stepped')
if answer[1] == ARGV[4] then
  local reply = cmsgpack.unpack(answer[2])
  reply[4], reply[5], reply[6] = whole(mailbox.messages), whole(mailbox.bytes), whole(try('LLEN', root .. 'fans') or 0)
  return reply
end
limits.messages, limits.bytes, limits.ttl = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
mailbox.collapsed, mailbox.retired = 0, 0
redis.call('HSET', answer_key, 'step', '')
fanning().step_oldest(tonumber(ARGV[8]))
local lost = save_boxes()
local steps, left = fanning().save_fans(ARGV[9])
leave()
local reply = {'stepped', lost, whole(mailbox.collapsed), whole(mailbox.messages), whole(mailbox.bytes),
  whole(left), steps, whole(mailbox.retired), foreign}
redis.call('HSET', answer_key, 'step', ARGV[4], 'stepped', cmsgpack.pack(reply))
redis.call('EXPIRE', answer_key, 86400)
return reply
"""

JOIN: Final = """
-- ARGV: key and epoch, now (ms), the time (ms) since which a device is known well enough, the process of this Redis;
-- then for each device: its name; its audiences, one a line; 'new', or '' if they count only for a device without any;
-- and who must hold the device for new ones to count (or empty)
local why = enter()
if why then return {why} end
mailbox.withdrawn = 0

local function set_of(text)
  local found = {}
  for line in string.gmatch(text or '', '[^\\n]+') do found[line] = true end
  return found
end

local function replace_audiences(name, before, named)
  for audience in pairs(before) do
    if not named[audience] then try('ZREM', root .. 'a:' .. audience, name) end
  end
  for audience in pairs(named) do
    if not before[audience] then
      local sequence = redis.call('HINCRBY', meta, 'sequence', 1)
      try('ZADD', root .. 'a:' .. audience, 'NX', sequence, name)
    end
  end
end

-- Remove the messages that are for audiences of others only.
local function withdraw(box, named)
  if not extend(box) then return end
  for _, lane in ipairs({box.normal, box.high}) do
    local withdrawn = {}
    each(lane.stream, lane.gone + 1, '+', function(entry)
      local more = more_of(entry)
      if more and more.audience and not named[more.audience] then withdrawn[#withdrawn + 1] = entry end
    end)
    for _, entry in ipairs(withdrawn) do leaving().retract(box, lane, entry) end
    mailbox.withdrawn = mailbox.withdrawn + #withdrawn
  end
  save(box)
end

for at = 5, #ARGV, 4 do
  local name, text = ARGV[at], ARGV[at + 1]
  local before = try('HGET', root .. 'members', name) or ''
  -- The connection that has superseded this one may have a newer token.
  local is_new = ARGV[at + 2] ~= '' and not superseded(name, ARGV[4], ARGV[at + 3])
  if not is_new and before ~= '' then text = before end
  local seen = tonumber(try('ZSCORE', root .. 'known', name) or '0')
  local key = root .. 'b:' .. name
  if before ~= text or seen < tonumber(ARGV[3]) or redis.call('EXISTS', key) == 0 then
    -- The first write: Redis rejects it if memory is full.
    try('HSET', root .. 'members', name, text)
    try('ZADD', root .. 'known', now, name)
    local was, named = set_of(before), set_of(text)
    if before ~= text then replace_audiences(name, was, named) end
    local box = load(name)
    if not box then
      box = create(name)
      save(box)
      try('ZADD', root .. 'due', 'NX', now, name)
    elseif not box.is_foreign and before ~= text and before ~= '' then
      withdraw(box, named)
    end
    if not box.is_foreign then redis.call('HSET', key, 'touched', now) end
  end
end
leave()
return {'joined', mailbox.withdrawn, whole(mailbox.messages), whole(mailbox.bytes), foreign}
"""
