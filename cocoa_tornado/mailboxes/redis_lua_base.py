"""Lua for all scripts of the Redis mailbox: the mailbox itself, and commands on keys that may have a wrong type.

A script creates all of its functions each time it is called, which takes longer than storing a message. So functions
that plain messages do not need are created by ``lazily``, when one of them is first called.
"""

from __future__ import annotations

from typing import Final

BASE: Final = """
local meta = KEYS[1]
local root = string.sub(meta, 1, -5)

local function whole(number)
  -- The first takes half as long, but may be limited to 32 bits.
  return string.format(number < 2147483648 and '%d' or '%.0f', number)
end

local foreign, is_noted = {}, {}
local function note(key)
  if not is_noted[key] then foreign[#foreign + 1] = key end
  is_noted[key] = true
end

-- Returns whether these fields of a key are numbers. If another program has overwritten one, the key is recorded.
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

-- Returns a function that returns what another makes when it is first called.
local function lazily(make)
  local made
  return function()
    if not made then made = make() end
    return made
  end
end

-- A write that Redis accepts although memory is full; after it, Redis accepts every write of the script.
local function begin_although_full() redis.call('DEL', root .. 'probe') end
"""

MAILBOX: Final = """
-- The mailbox that this script works on, and the time (ms).
local mailbox, now = {}, ARGV[2]
local given_before, messages_before, bytes_before

-- Reads the mailbox. Returns a reason if it is not the one, or the epoch, that the gateway's arguments are for.
local function enter()
  local found = redis.call('HMGET', meta, 'key', 'given', 'messages', 'bytes', 'era', 'emptied')
  local key, epoch = found[1] or '', found[5] or '0'
  if key .. ':' .. epoch ~= ARGV[1] then
    return key ~= '' and string.sub(ARGV[1], 1, #key) == key and 'epoch' or 'replaced'
  end
  mailbox.epoch, mailbox.emptied = tonumber(epoch), found[6] or '0'
  mailbox.given, mailbox.messages = tonumber(found[2]) or 0, tonumber(found[3]) or 0
  mailbox.bytes = tonumber(found[4]) or 0
  given_before, messages_before, bytes_before = mailbox.given, mailbox.messages, mailbox.bytes
end

-- Writes what has changed.
local function leave()
  mailbox.messages, mailbox.bytes = math.max(0, mailbox.messages), math.max(0, mailbox.bytes)
  if mailbox.given ~= given_before or mailbox.messages ~= messages_before or mailbox.bytes ~= bytes_before then
    redis.call('HSET', meta, 'given', whole(mailbox.given), 'messages', whole(mailbox.messages),
      'bytes', whole(mailbox.bytes))
  end
end
"""

GUARD: Final = """
-- Who holds devices, according to presence (``cocoa_tornado/presence``), which is in the same Redis.
local term_of_presence

-- Returns nil if a connection may act for its device, else the reason why it may not.
-- run: of the Redis process that this script runs in; guard: bucket, term and holder
local function superseded(name, run, guard)
  if guard == '' then return end
  local bucket, term, holder = string.match(guard, '^(%d+) (%d+) (.+)$')
  if not term_of_presence then
    local found = try('HMGET', root .. 'p:meta', 'term', 'run') or {}
    term_of_presence = found[2] == run and found[1] or 'another'
  end
  if term_of_presence ~= term then return 'term' end
  local holders = try('HGET', root .. 'p:h:' .. bucket, name)
  if holders == holder then return end
  -- A device may hold several connections.
  if holders and string.find(' ' .. holders .. ' ', ' ' .. holder .. ' ', 1, true) then return end
  return 'superseded'
end
"""
