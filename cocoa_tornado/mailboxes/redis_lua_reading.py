"""The scripts that open the Redis mailbox and read its boxes."""

from __future__ import annotations

from typing import Final

READ: Final = """
-- ARGV: key and epoch, now (ms), device, the time (ms) up to which messages have expired, the run id of this Redis, who
-- must hold the device (or empty); then for each lane: 'n' or 'h', after, maximum messages, maximum bytes
local why = enter() or superseded(ARGV[3], ARGV[5], ARGV[6])
if why then return {why} end
local name, expired = ARGV[3], tonumber(ARGV[4])
local box, found = load(name, 'base', 'acked', 'written', 'retracted')
leave()
if not box then return {'none', whole(mailbox.given), whole(mailbox.epoch), mailbox.emptied} end
local key = root .. 'b:' .. name
if box.is_foreign or not is_sound(key, found[6], found[7] or '0', found[8]) then return {'foreign', key} end
local normal, high = {found[6], found[1], found[2], found[7], found[8], found[4], found[9]}, false
if box.high then
  high = redis.call('HMGET', key, 'hlast', 'hgone', 'hacked', 'hwritten', 'hcuts', 'hretracted')
end

local payloads = {}
local function payload_of(entry, more)
  if not more or not more.shared then return entry[2][2] end
  if payloads[more.shared] == nil then payloads[more.shared] = try('GET', root .. 'p:' .. more.shared) or false end
  return payloads[more.shared]
end

local function page(letter, after, most, most_bytes)
  local lane = letter == 'h' and box.high or box.normal
  local messages, count, size = {}, 0, 0
  if letter == 'h' and not box.high then return messages end
  local at = math.max(after, lane.gone) + 1
  while at <= lane.last do
    local chunk = try('XRANGE', lane.stream, whole(at), '+', 'COUNT', math.min(most, 32)) or {}
    if #chunk == 0 then return messages end
    for _, entry in ipairs(chunk) do
      local more = more_of(entry)
      local ends = more and tonumber(more.expires)
      local payload = (tonumber(entry[2][4]) or 0) > expired and not (ends and ends < tonumber(now))
        and payload_of(entry, more)
      if payload then
        size = size + #payload
        if count > 0 and (count >= most or size > most_bytes) then return messages end
        count = count + 1
        local low = more and more.low and 1 or 0
        local parts = {number_of(entry), entry[2][6], ends or 0, more and more.key or '', low, payload}
        for _, part in ipairs(parts) do messages[#messages + 1] = part end
      end
      at = number_of(entry) + 1
    end
  end
  return messages
end

local reply = {'box', normal, high, whole(mailbox.epoch), mailbox.emptied, foreign}
for at = 7, #ARGV, 4 do
  reply[#reply + 1] = page(ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]))
end
return reply
"""

FIND_ID: Final = """
-- ARGV: key and epoch, the id, where to go on, how many boxes to look into; or '' and a device instead
local why = enter()
if why then return {why} end
local id, found, cursor, names = '=' .. ARGV[2], {}, '0', {ARGV[4]}
if ARGV[3] ~= '' then
  local page = try('ZSCAN', root .. 'due', ARGV[3], 'COUNT', ARGV[4]) or {'0', {}}
  cursor, names = page[1], {}
  for at = 1, #page[2], 2 do names[#names + 1] = page[2][at] end
end
for _, name in ipairs(names) do
  local place = try('HGET', root .. 'i:' .. name, id)
  local ms, lane, number = string.match(place or '', '^%d+ (%d+) (%a)(%d+)$')
  if ms then
    for _, part in ipairs({name, lane, number, ms}) do found[#found + 1] = part end
  end
end
return {'named', cursor, found, foreign}
"""

OPEN: Final = """
-- ARGV: the key that the gateway knows, or empty; a key for a new mailbox; its schema; the run id of this Redis, or
-- empty if it is hidden; what the gateway knows: messages ever stored, epoch (or empty), lowest number for a new epoch,
-- messages in the mailbox, their bytes; now (ms)
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
  -- Members that are left have lower numbers than those that join from now on.
  redis.call('HSET', meta, 'key', key, 'schema', ARGV[3], 'given', given, 'messages', messages, 'bytes', bytes,
    'era', epoch, 'run', ARGV[4], 'sequence', was ~= '' and ARGV[10] or '0')
  found = {key, ARGV[3], messages, bytes, given, epoch, ARGV[4]}
elseif ARGV[1] ~= '' and found[1] ~= ARGV[1] then
  was = 'replaced'
end
if found[2] ~= ARGV[3] then return {'version', found[2]} end
-- Call every command of the other scripts, so that a missing permission shows now and not in the middle of a group.
-- Leftovers of an interrupted attempt are deleted first.
local stream, hash, list, zset = root .. 'probe:m', root .. 'probe:b', root .. 'probe:seen', root .. 'probe:due'
local text, set = root .. 'probe:p', root .. 'probe:d'
redis.call('DEL', stream, hash, list, zset, text, set)
redis.call('XADD', stream, '*', 'payload', '')
redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)
redis.call('XLEN', stream)
redis.call('XINFO', 'STREAM', stream)
redis.call('XDEL', stream, '1-0')
redis.call('XTRIM', stream, 'MINID', '=', '2')
redis.call('HSET', hash, 'a', 1)
redis.call('HGET', hash, 'a')
redis.call('HMGET', hash, 'a')
redis.call('HINCRBY', hash, 'a', 1)
redis.call('HDEL', hash, 'b')
redis.call('EXISTS', hash)
redis.call('EXPIRE', hash, 60)
redis.call('RPUSH', list, 'a', 'b', 'c')
redis.call('PEXPIRE', list, 60000)
redis.call('LINDEX', list, -1)
redis.call('LRANGE', list, 0, -1)
redis.call('LLEN', list)
redis.call('LREM', list, 1, 'b')
redis.call('LPOP', list)
redis.call('ZADD', zset, 'LT', 1, 'a')
redis.call('ZCARD', zset)
redis.call('ZSCAN', zset, 0)
redis.call('ZRANGE', zset, 0, 0)
redis.call('ZREVRANGE', zset, 0, 0)
redis.call('ZRANGEBYSCORE', zset, '-inf', 1, 'LIMIT', 0, 1)
redis.call('ZSCORE', zset, 'a')
redis.call('ZREM', zset, 'a')
redis.call('SET', text, 'a')
redis.call('GET', text)
redis.call('SADD', set, 'a')
redis.call('SMISMEMBER', set, 'a')
redis.call('DEL', stream, hash, list, zset, text, set)
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
return {'open', found[1], found[2], whole(given), whole(epoch), found[3], found[4], was,
  try('LLEN', root .. 'fans') or 0, foreign}
"""
