"""The mailbox's keys in Redis, and the Lua scripts that change them. No I/O.

All keys begin with ``cocoa:{box}:``, whose braces keep them in one slot of a cluster:

=================  ======  ===================================================================================
``meta``           hash    ``key`` (for cursors), ``schema``, ``given`` (messages ever stored), ``messages``,
                           ``bytes``, ``era`` (the epoch, rules/box.py), ``run`` (the run id of the Redis process in
                           which it began), ``emptied`` (the epoch that began when all messages were lost)
``b:<device>``     hash    the box: ``base last gone acked written``, ``bytes`` in it, ``touched`` (ms), ``cuts``
                           (``<epoch>:<last>`` for each, oldest first)
``m:<device>``     stream  its messages: ``<number>-0``: ``payload stored_ms timestamp_ms``; none while it is empty
``due``            zset    devices, by a time (ms) no later than that of the oldest message in their boxes
``seen:<source>``  list    runs of rules/seen.py: id of the group, first offset (8 bytes), timestamps (8 bytes each)
``answer:<id>``    hash    the last group of one gateway, and the reply to it
=================  ======  ===================================================================================

A script is atomic, with two exceptions that shape all of these: an error in the middle keeps the writes before it, and
Redis rejects a script for lack of memory at its first write only. So each script first reads every key that might have
a wrong type. The script that stores begins with a write that Redis rejects when memory is full; the scripts that delete
begin with one that Redis accepts.

Other programs may write to these keys, and Redis may evict them. A key of a wrong type, or a box whose fields are not
numbers, affects only its device, or the remembered offsets of its source; the replies name it. If a box is missing
while its device is in ``due``, something else removed it. The script rebuilds it from its stream. If the stream is gone
too, the new box counts one message as missed, since nothing is known about the lost ones.
"""

from __future__ import annotations

import hashlib
from typing import Final

PREFIX: Final = b"cocoa:{box}:"
META: Final = PREFIX + b"meta"
SCHEMA: Final = 1
GROUP_ID_BYTES: Final = 16

Command = list[bytes]

_PRELUDE: Final = """
local meta = KEYS[1]
local root = string.sub(meta, 1, -5)

local function whole(number) return string.format('%.0f', number) end

-- Returns given, messages, bytes, epoch, emptied; or nil and the reason, if this is not the mailbox and the epoch that
-- the gateway knows.
local function totals()
  local found = redis.call('HMGET', meta, 'key', 'given', 'messages', 'bytes', 'era', 'emptied')
  local key, epoch = found[1] or '', found[5] or '0'
  if key .. ':' .. epoch == ARGV[1] then
    return tonumber(found[2]) or 0, tonumber(found[3]) or 0, tonumber(found[4]) or 0, tonumber(epoch), found[6] or '0'
  end
  return nil, key ~= '' and string.sub(ARGV[1], 1, #key) == key and 'epoch' or 'replaced'
end

local function keep_totals(messages, bytes)
  redis.call('HSET', meta, 'messages', whole(math.max(0, messages)), 'bytes', whole(math.max(0, bytes)))
end

local foreign, is_noted = {}, {}
local function note(key)
  if not is_noted[key] then foreign[#foreign + 1] = key end
  is_noted[key] = true
end

-- Returns whether these fields of a box are numbers. If another program has overwritten one, its key is recorded.
local function is_sound(key, ...)
  for at = 1, select('#', ...) do
    local value = select(at, ...)
    if not value or not string.find(value, '^%-?%d+$') then
      note(key)
      return false
    end
  end
  return true
end

-- Returns the reply of a command; or nil and true if its key has a wrong type, which is recorded.
local function try(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply, false end
  if not string.find(reply.err, 'WRONGTYPE', 1, true) then return redis.call(command, key, ...), false end
  note(key)
  return nil, true
end

local function number_of(entry) return tonumber(string.match(entry[1], '^%d+')) end

-- A write that Redis accepts although memory is full; after it, Redis accepts every write of the script.
local function begin_although_full() redis.call('DEL', root .. 'probe') end

-- Delete the messages of a stream that are no longer in its box.
local function trim(stream, gone, last)
  if gone >= last then
    redis.call('DEL', stream)
  else
    try('XTRIM', stream, 'MINID', '=', whole(gone + 1))
  end
end

-- Rebuild a box that something else removed, if there was one. Returns the new value of given, and whether it did.
local function rebuild(name, given, epoch, now)
  if not try('ZSCORE', root .. 'due', name) then return given, false end
  begin_although_full()
  local left = try('XRANGE', root .. 'm:' .. name, '-', '+') or {}
  local base, last, gone, bytes = given, given + 1, given + 1, 0
  local written = base
  if #left > 0 then
    base, last, gone = 0, number_of(left[#left]), number_of(left[1]) - 1
    written = gone
    for _, entry in ipairs(left) do bytes = bytes + #entry[2][2] end
  end
  given = math.max(given, last)
  redis.call('HSET', meta, 'given', whole(given))
  redis.call('HSET', root .. 'b:' .. name, 'base', whole(base), 'last', whole(last), 'gone', whole(gone),
    'written', whole(written), 'bytes', whole(bytes), 'touched', now)
  -- The cuts of earlier epochs are lost: limit their positions to the messages that are gone.
  if epoch > 0 then redis.call('HSET', root .. 'b:' .. name, 'cuts', whole(epoch) .. ':' .. whole(written)) end
  return given, true
end
"""

_OPEN: Final = """
-- ARGV: the key that the gateway knows, or empty; a key for a new mailbox; its schema; the run id of this Redis, or
-- empty if it is hidden; what the gateway knows: messages ever stored, epoch (or empty), lowest number for a new epoch,
-- messages in the mailbox, their bytes
local found, is_foreign = try('HMGET', meta, 'key', 'schema', 'messages', 'bytes', 'given', 'era', 'run')
if is_foreign then return {'foreign', meta} end
local boxes, was = try('ZCARD', root .. 'due') or 0, ''
if not found[1] and not found[2] then
  local key, given, epoch, messages, bytes = ARGV[2], '0', '0', '0', '0'
  if ARGV[1] ~= '' then
    -- The gateway knows this mailbox: its cursors stay valid, and new numbers lie above all earlier ones.
    was, key, given, epoch = 'emptied', ARGV[1], ARGV[5], ARGV[6]
    if boxes > 0 then messages, bytes = ARGV[8], ARGV[9] end
  end
  redis.call('HSET', meta, 'key', key, 'schema', ARGV[3], 'given', given, 'messages', messages, 'bytes', bytes,
    'era', epoch, 'run', ARGV[4])
  found = {key, ARGV[3], messages, bytes, given, epoch, ARGV[4]}
elseif ARGV[1] ~= '' and found[1] ~= ARGV[1] then
  was = 'replaced'
end
if found[2] ~= ARGV[3] then return {'version', found[2]} end
-- Call every command of the other scripts, so that a missing permission shows now and not in the middle of a group.
-- Leftovers of an interrupted attempt are deleted first.
local stream, hash, list, zset = root .. 'probe:m', root .. 'probe:b', root .. 'probe:seen', root .. 'probe:due'
redis.call('DEL', stream, hash, list, zset)
redis.call('XADD', stream, '*', 'payload', '')
redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)
redis.call('XTRIM', stream, 'MINID', '=', '2')
redis.call('HSET', hash, 'a', 1)
redis.call('HMGET', hash, 'a')
redis.call('EXPIRE', hash, 60)
redis.call('RPUSH', list, 'a', 'b')
redis.call('PEXPIRE', list, 60000)
redis.call('LINDEX', list, -1)
redis.call('LPOP', list)
redis.call('ZADD', zset, 1, 'a')
redis.call('ZRANGEBYSCORE', zset, '-inf', 1, 'LIMIT', 0, 1)
redis.call('ZSCORE', zset, 'a')
redis.call('ZREM', zset, 'a')
redis.call('DEL', stream, hash, list, zset)
local given, epoch, known = tonumber(found[5]) or 0, tonumber(found[6]) or 0, tonumber(ARGV[5])
if was ~= '' or given < known or (ARGV[4] ~= '' and found[7] ~= ARGV[4]) or (ARGV[4] == '' and ARGV[6] == '') then
  -- No epoch may begin twice, although the record of its beginning may be lost. So a new epoch's number is above the
  -- one that the gateway knows and at least the current second.
  -- Another process continues from its disk or as a promoted replica, and may lack the latest writes. The numbers of
  -- new boxes are therefore above every number known to be assigned.
  given, epoch = math.max(given, known), math.max(epoch + 1, (tonumber(ARGV[6]) or -1) + 1, tonumber(ARGV[7]))
  redis.call('HSET', meta, 'given', whole(given), 'era', whole(epoch), 'run', ARGV[4])
  if was == 'emptied' and boxes == 0 and tonumber(ARGV[8]) > 0 then
    redis.call('HSET', meta, 'emptied', whole(epoch))
  end
end
return {'open', found[1], found[2], whole(given), whole(epoch), found[3], found[4], was, foreign}
"""

_APPEND: Final = """
-- ARGV: key and epoch, now (ms), gateway, group, maximum messages, maximum bytes, ms to remember sources for,
-- counts of sources, devices and entries; then the sources: name, version, replace (1/0), floor, count of runs, runs;
-- the devices; the entries: index of its device, timestamp, payload
local given, messages, bytes, epoch = totals()
if not given then return {messages} end
local answer_key = root .. 'answer:' .. ARGV[3]
local answer = redis.call('HMGET', answer_key, 'group', 'numbers', 'lost')
if answer[1] == ARGV[4] then
  return {'stored', answer[2], answer[3], whole(given), whole(messages), whole(bytes), foreign}
end

local now, group = ARGV[2], ARGV[4]
local max_messages, max_bytes, remember_ms = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local sources, devices, entries = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])

-- The gateway's decision is valid only if its sources have not changed.
local at, runs_at = 11, {}
for i = 1, sources do
  local newest, is_foreign = try('LINDEX', root .. 'seen:' .. ARGV[at], -1)
  if not is_foreign then
    if (newest and string.sub(newest, 1, 16) or '') ~= ARGV[at + 1] then return {'stale'} end
    runs_at[i] = at
  end
  at = at + 5 + tonumber(ARGV[at + 4])
end

-- With a box's first message of an epoch, record its last number before it. Beyond 8 cuts the two oldest are merged:
-- an old position may then resolve to an earlier one, never to a later one.
local function cut(key, cuts, epoch, last)
  if epoch == 0 or (cuts and string.match(cuts, '(%d+):%d+$') == whole(epoch)) then return end
  cuts = (cuts and cuts .. ' ' or '') .. whole(epoch) .. ':' .. whole(last)
  local _, count = string.gsub(cuts, ':', '')
  if count > 8 then
    cuts = string.gsub(cuts, '^%d+:(%d+) (%d+):(%d+)', function(one, later, other)
      return later .. ':' .. whole(math.min(tonumber(one), tonumber(other)))
    end)
  end
  redis.call('HSET', key, 'cuts', cuts)
end

local names_at, boxes = at - 1, {}
for i = 1, devices do
  local name = ARGV[names_at + i]
  boxes[i] = try('HMGET', root .. 'b:' .. name, 'last', 'gone', 'bytes', 'cuts') or {is_foreign = true}
  if not boxes[i][1] and not boxes[i].is_foreign then
    local is_rebuilt
    given, is_rebuilt = rebuild(name, given, epoch, now)
    if is_rebuilt then boxes[i] = redis.call('HMGET', root .. 'b:' .. name, 'last', 'gone', 'bytes', 'cuts') end
  end
  if boxes[i][1] and not is_sound(root .. 'b:' .. name, unpack(boxes[i], 1, 3)) then boxes[i] = {is_foreign = true} end
end

-- The first write: Redis rejects it if memory is full.
redis.call('HSET', answer_key, 'group', '')

local numbers, lost, freed, added, refused = {}, 0, 0, 0, 0
at = names_at + devices + 1
for i = 1, entries do
  local index = tonumber(ARGV[at])
  local name = ARGV[names_at + index]
  local box, stream = boxes[index], root .. 'm:' .. name
  if not box.stream and not box.is_foreign then
    box.stream = stream
    if box[1] then
      box.last, box.gone, box.bytes = tonumber(box[1]), tonumber(box[2]), tonumber(box[3])
    else
      box.last, box.gone, box.bytes = given + i - 1, given + i - 1, 0
      redis.call('DEL', stream)
      redis.call('HSET', root .. 'b:' .. name, 'base', whole(box.last), 'written', whole(box.last))
    end
    try('ZADD', root .. 'due', 'NX', now, name)
    cut(root .. 'b:' .. name, box[4], epoch, box.last)
  end
  if box.is_foreign then
    numbers[i], refused = '-', refused + 1
  else
    local payload = ARGV[at + 2]
    local number = whole(box.last + 1)
    local id = number .. '-0'
    local stored = redis.pcall('XADD', stream, id, 'payload', payload, 'stored_ms', now, 'timestamp_ms', ARGV[at + 1])
    if type(stored) == 'table' and stored.err then
      -- Something else changed the stream, so that it contradicts the box. New messages must be stored all the same.
      if string.find(stored.err, 'WRONGTYPE', 1, true) then foreign[#foreign + 1] = stream end
      redis.call('DEL', stream)
      lost, freed = lost + box.last - box.gone, freed + box.bytes
      box.gone, box.bytes = box.last, 0
      redis.call('XADD', stream, id, 'payload', payload, 'stored_ms', now, 'timestamp_ms', ARGV[at + 1])
    end
    box.last = box.last + 1
    box.bytes = box.bytes + #payload
    added = added + #payload
    numbers[i] = number
  end
  at = at + 3
end

for i = 1, devices do
  local box = boxes[i]
  if not box.is_foreign then
    local gone, left = box.gone, box.bytes
    while box.last - gone > max_messages or (left > max_bytes and box.last - gone > 1) do
      local count = math.max(4, math.min(100, box.last - gone - max_messages))
      local oldest = redis.call('XRANGE', box.stream, whole(gone + 1), '+', 'COUNT', count)
      if #oldest == 0 then gone, left = box.last - 1, 0 end
      for _, entry in ipairs(oldest) do
        if box.last - gone > max_messages or (left > max_bytes and box.last - gone > 1) then
          gone, left = number_of(entry), left - #entry[2][2]
        end
      end
    end
    if gone > box.gone then
      lost, freed = lost + gone - box.gone, freed + box.bytes - left
      trim(box.stream, gone, box.last)
    end
    redis.call('HSET', root .. 'b:' .. ARGV[names_at + i],
      'last', whole(box.last), 'gone', whole(gone), 'bytes', whole(left), 'touched', now)
  end
end

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

if entries > 0 then
  redis.call('HSET', meta, 'given', whole(given + entries))
  given, messages, bytes = given + entries, messages + entries - refused - lost, bytes + added - freed
  keep_totals(messages, bytes)
end
local joined = table.concat(numbers, ' ')
redis.call('HSET', answer_key, 'group', group, 'numbers', joined, 'lost', whole(lost))
redis.call('EXPIRE', answer_key, 86400)
return {'stored', joined, whole(lost), whole(given), whole(messages), whole(bytes), foreign}
"""

_MARK: Final = """
-- ARGV: key and epoch; then for each mark: device, acknowledged, written (either may be empty), epoch of both
local given, messages, bytes = totals()
if not given then return {messages} end

-- The current number of a position, as in rules/box.py, Box.settled.
local function settled(number, epoch, cuts, last)
  number = math.min(tonumber(number), last)
  for later, kept in string.gmatch(cuts or '', '(%d+):(%d+)') do
    if tonumber(later) > tonumber(epoch) then number = math.min(number, tonumber(kept)) end
  end
  return number
end

local boxes = {}
for at = 2, #ARGV, 4 do
  local key = root .. 'b:' .. ARGV[at]
  local box = try('HMGET', key, 'base', 'last', 'gone', 'acked', 'written', 'bytes', 'cuts') or {}
  local is_used = box[2] and is_sound(key, box[1], box[2], box[3], box[4] or '0', box[5], box[6])
  boxes[at] = is_used and box or {}
end
begin_although_full()
local removed, freed = 0, 0
for at = 2, #ARGV, 4 do
  local box, name = boxes[at], ARGV[at]
  local key, stream, acked, written = root .. 'b:' .. name, root .. 'm:' .. name, ARGV[at + 1], ARGV[at + 2]
  if box[2] and written ~= '' then
    local number = settled(written, ARGV[at + 3], box[7], tonumber(box[2]))
    if number > tonumber(box[5]) then redis.call('HSET', key, 'written', whole(number)) end
  end
  if box[2] and acked ~= '' then
    local last, gone, left = tonumber(box[2]), tonumber(box[3]), tonumber(box[6])
    local number = math.max(settled(acked, ARGV[at + 3], box[7], last), tonumber(box[4] or box[1]))
    local before, had = gone, left
    if number >= last and gone < last then
      gone, left = last, 0
    end
    while gone < number do
      local oldest = try('XRANGE', stream, whole(gone + 1), whole(number), 'COUNT', 100) or {}
      for _, entry in ipairs(oldest) do left = left - #entry[2][2] end
      gone = #oldest == 100 and number_of(oldest[100]) or number
    end
    if gone > before then
      removed, freed = removed + gone - before, freed + had - left
      trim(stream, gone, last)
    end
    redis.call('HSET', key, 'acked', whole(number), 'gone', whole(gone), 'bytes', whole(left))
  end
end
messages, bytes = messages - removed, bytes - freed
if removed > 0 then keep_totals(messages, bytes) end
return {'marked', removed, whole(messages), whole(bytes), foreign}
"""

_READ: Final = """
-- ARGV: key and epoch, device, after, maximum messages (0: the box only), maximum bytes, the time (ms) up to which
-- messages have expired, the number acknowledged but not stored yet, now (ms)
local given, why, _, epoch, emptied = totals()
if not given then return {why} end
local fields = {'base', 'last', 'gone', 'acked', 'written', 'cuts'}
local box, is_foreign = try('HMGET', root .. 'b:' .. ARGV[2], unpack(fields))
if is_foreign then return {'foreign', root .. 'b:' .. ARGV[2]} end
if not box[2] then
  local _, is_rebuilt = rebuild(ARGV[2], given, epoch, ARGV[8])
  if not is_rebuilt then return {'none', whole(given), whole(epoch), emptied} end
  box = redis.call('HMGET', root .. 'b:' .. ARGV[2], unpack(fields))
end
if not is_sound(root .. 'b:' .. ARGV[2], box[1], box[2], box[3], box[4] or '0', box[5]) then
  return {'foreign', root .. 'b:' .. ARGV[2]}
end
local stream, expired = root .. 'm:' .. ARGV[2], tonumber(ARGV[6])
local most, most_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local last = tonumber(box[2])
local gone = math.max(tonumber(box[3]), math.min(tonumber(ARGV[7]), last))
local reply = {'box', box[1], box[2], '', box[4], box[5], box[6], whole(epoch), emptied, foreign}
local head = #reply

-- Skip the oldest messages while they have expired.
local count = 1
while most > 0 and count > 0 and gone < last do
  local chunk = try('XRANGE', stream, whole(gone + 1), '+', 'COUNT', count) or {}
  count = #chunk > 0 and 32 or 0
  for _, entry in ipairs(chunk) do
    if (tonumber(entry[2][4]) or 0) > expired then
      count = 0
      break
    end
    gone = number_of(entry)
  end
end

local at, size, full = math.max(tonumber(ARGV[3]), gone) + 1, 0, most == 0
while not full and at <= last do
  local chunk = try('XRANGE', stream, whole(at), '+', 'COUNT', math.min(most, 32)) or {}
  if #chunk == 0 then break end
  for _, entry in ipairs(chunk) do
    local payload, taken = entry[2][2], (#reply - head) / 3
    size = size + #payload
    full = taken > 0 and (taken >= most or size > most_bytes)
    if full then break end
    at = number_of(entry) + 1
    reply[#reply + 1] = at - 1
    reply[#reply + 1] = entry[2][6]
    reply[#reply + 1] = payload
  end
end
reply[4] = whole(gone)
return reply
"""

_SWEEP: Final = """
-- ARGV: key and epoch, now (ms), the time (ms) up to which messages have expired, the time (ms) since which an empty
-- box is kept, the same for a box with a gap to report, maximum boxes, maximum messages
local given, messages, bytes, epoch = totals()
if not given then return {messages} end
local now, expired, most = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[7])
local names = try('ZRANGEBYSCORE', root .. 'due', '-inf', ARGV[3], 'LIMIT', 0, ARGV[6]) or {}
if #names > 0 then begin_although_full() end
local removed, freed = 0, 0
for _, name in ipairs(names) do
  local key, stream = root .. 'b:' .. name, root .. 'm:' .. name
  local box, is_foreign = try('HMGET', key, 'last', 'gone', 'bytes', 'touched', 'acked', 'written')
  if is_foreign then
    box = {}
  elseif not box[1] then
    given = rebuild(name, given, epoch, now)
    box = redis.call('HMGET', key, 'last', 'gone', 'bytes', 'touched', 'acked', 'written')
  end
  if not is_foreign and not is_sound(key, box[1], box[2], box[3], box[4], box[5] or '0', box[6]) then
    box, is_foreign = {}, true
  end
  local last, gone, left = tonumber(box[1]) or 0, tonumber(box[2]) or 0, tonumber(box[3]) or 0
  local before, had, due = gone, left, nil
  while gone < last and not due and removed + gone - before < most do
    local oldest = try('XRANGE', stream, whole(gone + 1), '+', 'COUNT', 50) or {}
    if #oldest == 0 then gone, left = last, 0 end
    for _, entry in ipairs(oldest) do
      local stored = tonumber(entry[2][4]) or 0 -- an entry of another program has no time: treat it as expired
      if stored > expired then
        due = stored
        break
      end
      gone, left = number_of(entry), left - #entry[2][2]
    end
  end
  if gone > before then
    removed, freed = removed + gone - before, freed + had - left
    redis.call('HSET', key, 'gone', whole(gone), 'bytes', whole(left))
    trim(stream, gone, last)
  end
  local owes_a_gap = gone > (tonumber(box[5] or box[6]) or 0)
  if not is_foreign and gone >= last and (tonumber(box[4]) or 0) < tonumber(owes_a_gap and ARGV[5] or ARGV[4]) then
    redis.call('DEL', key, stream)
    redis.call('ZREM', root .. 'due', name)
  elseif gone >= last or due then
    redis.call('ZADD', root .. 'due', due and whole(due) or now, name)
  end
  if removed >= most then break end
end
messages, bytes = messages - removed, bytes - freed
if removed > 0 then keep_totals(messages, bytes) end
return {'swept', removed, whole(messages), whole(bytes), foreign}
"""


class Script:
    """A script, called by its digest. Redis forgets all scripts when it restarts."""

    def __init__(self, body: str) -> None:
        self.text = (_PRELUDE + body).encode()
        self._digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def call(self, *arguments: bytes) -> Command:
        return [b"EVALSHA", self._digest, b"1", META, *arguments]


OPEN, APPEND, MARK, READ, SWEEP = map(Script, (_OPEN, _APPEND, _MARK, _READ, _SWEEP))

LOAD_ALL: Final[list[Command]] = [[b"SCRIPT", b"LOAD", script.text] for script in (OPEN, APPEND, MARK, READ, SWEEP)]
