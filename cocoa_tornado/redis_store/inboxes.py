"""Lua that puts messages into the inboxes of servers (``relay/redis_lua.py`` has the keys). No I/O."""

from __future__ import annotations

from typing import Final

MAX_MESSAGES: Final = 20_000
MAX_BYTES: Final = 64 * 1024 * 1024
"""The limits of an inbox, as in ``RelayLimits``, for scripts that do not get them as arguments."""

REPLACING: Final = """
-- Whether the reply to a command says that its key has another type, or that an entry comes too late: something else
-- has written the key, and it is replaced. Any other error, such as a missing permission, ends the script.
local function is_foreign(reply)
  if type(reply) ~= 'table' or not reply.err then return false end
  if string.find(reply.err, 'WRONGTYPE', 1, true) or string.find(reply.err, 'equal or smaller', 1, true) then
    return true
  end
  error(reply.err, 0)
end
"""
"""For scripts that replace keys which something else has written."""

POSTING: Final = (
    REPLACING
    + """
-- Inboxes: ``post`` decides, ``save_inboxes`` writes what was decided. Needs ``presence`` (the prefix of its
-- keys) and ``is_alive``.
local inboxes, posted_to = {}, {}

local function digits(number)
  return string.format(number < 2147483648 and '%d' or '%.0f', number)
end

-- The state of an inbox, read once in a script; false if its server does not exist.
local function inbox_of(server)
  local inbox = inboxes[server]
  if inbox == nil then
    inbox = is_alive(server) and {server = server, entries = {}}
    if inbox then
      local found = redis.pcall('HMGET', presence .. 'q:' .. server,
        'sequence', 'messages', 'bytes', 'read_messages', 'read_bytes', 'lost')
      inbox.is_foreign = is_foreign(found)
      inbox.sequence = tonumber(found[1] or 0)
      inbox.messages, inbox.bytes = tonumber(found[2] or 0), tonumber(found[3] or 0)
      inbox.read_messages, inbox.read_bytes = tonumber(found[4] or 0), tonumber(found[5] or 0)
      inbox.lost, inbox.lost_before = tonumber(found[6] or 0), tonumber(found[6] or 0)
      posted_to[#posted_to + 1] = inbox
    end
    inboxes[server] = inbox
  end
  return inbox
end

-- Returns 'a' if the inbox has room, 'o' if not, 'n' if there is no such server. After an 'o', the same script posts
-- nothing more to this inbox.
local function post(server, sender, count, bytes, message, max_messages, max_bytes)
  local inbox = inbox_of(server)
  if not inbox then return 'n' end
  local messages, size = inbox.messages + count, inbox.bytes + bytes
  if inbox.lost > inbox.lost_before or messages - inbox.read_messages > max_messages
      or size - inbox.read_bytes > max_bytes then
    inbox.lost = inbox.lost + 1
    return 'o'
  end
  inbox.sequence, inbox.messages, inbox.bytes = inbox.sequence + 1, messages, size
  local totals = digits(messages) .. ' ' .. digits(size)
  inbox.entries[#inbox.entries + 1] = {digits(inbox.sequence) .. '-0', 's', sender, 't', totals, 'm', message}
  return 'a'
end

local function save_inboxes()
  for _, inbox in ipairs(posted_to) do
    local stream, queue = presence .. 'in:' .. inbox.server, presence .. 'q:' .. inbox.server
    if inbox.is_foreign then redis.call('DEL', queue) end
    for _, entry in ipairs(inbox.entries) do
      if is_foreign(redis.pcall('XADD', stream, unpack(entry))) then
        -- Or something else has deleted the hash beside it. The server notices that entries are missing.
        redis.call('DEL', stream)
        redis.call('XADD', stream, unpack(entry))
      end
    end
    if #inbox.entries > 0 or inbox.lost > inbox.lost_before then
      redis.call('HSET', queue, 'sequence', digits(inbox.sequence), 'messages', digits(inbox.messages),
        'bytes', digits(inbox.bytes), 'lost', digits(inbox.lost))
    end
  end
end
"""
)
"""For the relay, and for the mailbox, which wakes the servers of the devices for which it stores something."""

BELLS: Final = (
    POSTING
    + f"local max_messages, max_bytes = {MAX_MESSAGES}, {MAX_BYTES}\n"
    + """
-- Wakes the servers that hold devices: ``relay/wire.py`` reads these messages. Needs ``root``, ``try`` and ``whole`` of
-- the mailbox's scripts.
-- first: where this server's own epoch is in ARGV, which is not woken, followed by pairs of bucket and device
-- Returns the positions of the devices that a server holds, beginning with 1.
local function ring(first, sender)
  local rung, names, order, own = {}, {}, {}, ARGV[first]
  for at = first + 1, #ARGV, 2 do
    local is_held = false
    for holder in string.gmatch(try('HGET', presence .. 'h:' .. ARGV[at], ARGV[at + 1]) or '', '%S+') do
      local server = string.match(holder, '^[^:]*')
      if inbox_of(server) then
        local of_server = names[server]
        if server ~= own and not of_server then
          of_server = {}
          names[server], order[#order + 1] = of_server, server
        end
        if of_server and of_server[#of_server] ~= ARGV[at + 1] then of_server[#of_server + 1] = ARGV[at + 1] end
        is_held = true
      end
    end
    if is_held then rung[#rung + 1] = whole((at - first + 1) / 2) end
  end
  for _, server in ipairs(order) do
    local size = 0
    for _, name in ipairs(names[server]) do size = size + 64 + #name end
    post(server, sender, #names[server], size, cmsgpack.pack({1, 'wake', names[server]}), max_messages, max_bytes)
  end
  save_inboxes()
  return table.concat(rung, ' ')
end
"""
)
