"""The inboxes of servers in Redis: keys, Lua text, arguments and replies. No I/O.

All keys begin with ``cocoa:{box}:p:``, beside those of presence (``presence/redis_scripts.py``), and end with the epoch
of the server:

==============  ======  =====================================================================================
``in:<epoch>``  stream  ``<sequence>-0`` -> ``s`` (the sender's epoch), ``t`` (``messages bytes``: everything
                        ever sent to this inbox, including this entry), ``m`` (the message, ``wire.py``)
``q:<epoch>``   hash    of its inbox: ``sequence`` (of the last entry), ``messages`` and ``bytes`` (ever sent),
                        ``read_messages`` and ``read_bytes`` (of those, taken out), ``lost`` (how often there
                        was no room for a message); of its own sending: ``sent`` (the number of the last SEND),
                        ``fates`` (its reply)
==============  ======  =====================================================================================

A server exists as long as ``servers`` has its epoch. Presence begins it, and deletes these keys when it ends; no script
here creates a key of a server that does not exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from ..redis_store.inboxes import POSTING, REPLACING
from ..redis_store.scripts import PREFIX, Command, Script
from ..rules.claims import bucket_of
from .port import Fate, RelayLimits

META: Final = PREFIX + b"p:meta"

_BASE: Final = """
local presence = string.sub(KEYS[1], 1, -5)
local function is_alive(epoch) return redis.call('HEXISTS', presence .. 'servers', epoch) == 1 end
"""

UNKNOWN_TOTALS: Final = (b"", b"")

TO_HOLDERS: Final = "*"
"""In place of a server: its holders are found here."""

_ROUTE: Final = """
local stamp_now

-- Sends messages to the other servers that hold their devices.
-- names: MessagePack, the term and the run that they are for, then bucket and device of each message
-- lengths: MessagePack, of each message; body: the messages, one after the other; head: of a forward
-- Returns a letter for each message: of ``post``, or 'h': held by the sender only; 't': another term has begun.
local function route(sender, names, lengths, body, head, max_messages, max_bytes)
  names, lengths = cmsgpack.unpack(names), cmsgpack.unpack(lengths)
  local count = #lengths
  if not stamp_now then
    local found = redis.call('HMGET', KEYS[1], 'term', 'run')
    stamp_now = (found[1] or '') .. ':' .. (found[2] or '')
  end
  if names[1] ~= stamp_now then return string.rep('t', count) end
  local buckets, fates, groups, order = presence .. 'h:', {}, {}, {}
  local pcall, find, sub = redis.pcall, string.find, string.sub
  local function add(at, server)
    if server == sender then
      fates[at] = 'h'
    elseif inbox_of(server) then
      local group = groups[server]
      if not group then
        group = {}
        groups[server], order[#order + 1] = group, server
      end
      if group[#group] ~= at then group[#group + 1] = at end
    end
  end
  for at = 1, count do
    local found = pcall('HGET', buckets .. names[2 * at], names[2 * at + 1])
    fates[at] = 'n'
    if type(found) == 'string' then  -- else nobody holds it, or the key has another type
      local ends = find(found, ':', 1, true)
      if ends and not find(found, ' ', ends, true) then  -- nearly always
        add(at, sub(found, 1, ends - 1))
      else
        for server in string.gmatch(found, '([^: ]+):[^ ]*') do add(at, server) end
      end
    end
  end
  for _, server in ipairs(order) do
    local group, message, size = groups[server], body, #body
    local several = #group
    if several < count then
      local parts, begins = {}, {}
      local from = 1
      for at = 1, count do
        begins[at], from = from, from + lengths[at]
      end
      for n, at in ipairs(group) do parts[n] = string.sub(body, begins[at], begins[at] + lengths[at] - 1) end
      message = table.concat(parts)
      size = #message
    end
    local array = several < 16 and string.char(144 + several)
      or string.char(220, math.floor(several / 256), several % 256)
    local fate = post(server, sender, several, size, head .. array .. message, max_messages, max_bytes)
    for _, at in ipairs(group) do
      if fates[at] ~= 'o' then fates[at] = fate end
    end
  end
  return table.concat(fates)
end
"""

SEND: Final = Script(
    _BASE,
    POSTING,
    _ROUTE,
    """
-- ARGV: sender, number of this call, most messages and bytes of an inbox, the head of a forward; then for each message:
-- server, count, bytes, message, or '*' and the arguments of ``route``. A call with the number of the last one has no
-- effect, and returns the same.
local sender, number, max_messages, max_bytes = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if not is_alive(sender) then return {'fenced'} end
local own = presence .. 'q:' .. sender
local last = redis.pcall('HMGET', own, 'sent', 'fates')
local is_own_foreign = is_foreign(last)
if last[1] == number then return {'sent', last[2]} end
local fates = {}
for at = 6, #ARGV, 4 do
  local server, count, size, message = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  if server == '*' then
    fates[#fates + 1] = route(sender, count, size, message, ARGV[5], max_messages, max_bytes)
  else
    fates[#fates + 1] = post(server, sender, tonumber(count), tonumber(size), message, max_messages, max_bytes)
  end
end
-- A write that Redis accepts although memory is full; after it, Redis accepts every write of the script. Inboxes are
-- bounded, and a challenge must get its answer.
redis.call('DEL', presence .. 'probe')
save_inboxes()
fates = table.concat(fates)
if is_own_foreign then redis.call('DEL', own) end
redis.call('HSET', own, 'sent', number, 'fates', fates)
return {'sent', fates}
""",
    key=META,
)

DONE: Final = Script(
    _BASE,
    REPLACING,
    """
-- ARGV: server, the last sequence number that it has taken, and the totals of that entry: messages, bytes; or '', ''
local server, taken = ARGV[1], tonumber(ARGV[2])
if not is_alive(server) then return {'fenced'} end
local stream, queue = presence .. 'in:' .. server, presence .. 'q:' .. server
local found = redis.pcall('HMGET', queue, 'sequence', 'lost', 'read_messages')
local sequence = tonumber(found[1] or 0)
local left = redis.pcall('XLEN', stream)
local is_queue_foreign, is_stream_foreign = is_foreign(found), is_foreign(left)
redis.call('DEL', presence .. 'probe')
if is_stream_foreign then
  redis.call('DEL', stream)
  left = 0
end
if is_queue_foreign then redis.call('DEL', queue) end
if left > 0 then
  redis.call('XTRIM', stream, 'MINID', string.format('%.0f', taken + 1))
  left = redis.call('XLEN', stream)
end
if left == 0 and sequence ~= taken then
  -- What was sent since has been lost, or what is known of it has: count from what there is.
  redis.call('HSET', queue, 'sequence', string.format('%.0f', math.max(sequence, taken)))
  local totals = redis.call('HMGET', queue, 'messages', 'bytes')
  redis.call('HSET', queue, 'read_messages', totals[1] or '0', 'read_bytes', totals[2] or '0')
elseif ARGV[3] ~= '' and (found[3] or '0') ~= ARGV[3] then
  redis.call('HSET', queue, 'read_messages', ARGV[3], 'read_bytes', ARGV[4])
end
return {'done', found[1] or '0', left, found[2] or '0'}
""",
    key=META,
)

SCRIPTS: Final = (SEND, DONE)

_FATES: Final = {
    ord("a"): Fate.ACCEPTED,
    ord("o"): Fate.OVERFLOW,
    ord("n"): Fate.NO_SERVER,
    ord("h"): Fate.HERE,
    ord("t"): Fate.TERM_OVER,
}
_PACK: Final = msgspec.msgpack.Encoder().encode


class Posted(NamedTuple):
    """A message for another server.

    :ivar messages: for how many it counts
    """

    server: str
    messages: int
    size_bytes: int
    data: bytes

    @property
    def arguments(self) -> tuple[bytes, bytes, bytes, bytes]:
        return self.server.encode(), b"%d" % self.messages, b"%d" % self.size_bytes, self.data

    @property
    def fates(self) -> int:
        """How many letters of the reply are for it."""
        return 1


class ToHolders(NamedTuple):
    """Messages for the holders of devices.

    :ivar names: the devices
    :ivar encoded: the messages, as ``wire.encode_each`` makes them
    """

    stamp: str
    names: Sequence[str]
    encoded: Sequence[bytes]
    size_bytes: int

    @property
    def server(self) -> str:
        return TO_HOLDERS

    @property
    def messages(self) -> int:
        return len(self.names)

    @property
    def fates(self) -> int:
        return len(self.names)

    @property
    def arguments(self) -> tuple[bytes, bytes, bytes, bytes]:
        names: list[str | int] = [self.stamp]
        for name in self.names:
            names += (bucket_of(name.encode()), name)
        return TO_HOLDERS.encode(), _PACK(names), _PACK([len(each) for each in self.encoded]), b"".join(self.encoded)


class Entry(NamedTuple):
    """An entry of an inbox.

    :ivar totals: messages and bytes that were ever sent to this inbox, including this entry
    """

    sequence: int
    sender: str
    totals: tuple[bytes, bytes]
    data: bytes


class Inbox(NamedTuple):
    """The state of an inbox after DONE.

    :ivar sequence: of the last entry that was ever in it
    :ivar left: entries that wait in it
    :ivar lost: how often there was no room for a message
    """

    sequence: int
    left: int
    lost: int


def send_command(
    sender: str, number: int, limits: RelayLimits, messages: Iterable[Posted | ToHolders], head: bytes = b""
) -> Command:
    """:param number: grows with each call of this sender; a repetition has the same
    :param head: of a forward (``wire.FORWARD_HEAD``)
    """
    arguments = [sender.encode(), b"%d" % number, b"%d" % limits.max_messages, b"%d" % limits.max_bytes, head]
    for message in messages:
        arguments += message.arguments
    return SEND.call(*arguments)


def fates_of(reply: Sequence[Any]) -> list[Fate] | None:
    """The fate of each message, one by one; None: the sender's epoch is over, and nothing was sent."""
    return None if reply[0] == b"fenced" else [_FATES[letter] for letter in reply[1]]


def read_command(server: str, after: int, block_ms: int, most: int) -> Command:
    """XREAD: wait for entries after this one, at most ``block_ms``. :func:`entries_of` reads the reply."""
    key = PREFIX + b"p:in:" + server.encode()
    return [b"XREAD", b"COUNT", b"%d" % most, b"BLOCK", b"%d" % block_ms, b"STREAMS", key, b"%d-0" % after]


def entries_of(reply: Any) -> list[Entry]:
    """Entries that another program wrote are skipped."""
    found = []
    for id_, fields in reply[0][1] if reply else ():
        values = dict(zip(fields[::2], fields[1::2], strict=True))
        messages, _, size = values.get(b"t", b"").partition(b" ")
        if messages.isdigit() and size.isdigit():
            sender = values.get(b"s", b"").decode(errors="replace")
            found.append(Entry(int(id_.partition(b"-")[0]), sender, (messages, size), values.get(b"m", b"")))
    return found


def done_command(server: str, taken: int, totals: tuple[bytes, bytes]) -> Command:
    """Remove the entries up to this one. The reply also has the state of the inbox."""
    return DONE.call(server.encode(), b"%d" % taken, *totals)


def inbox_of(reply: Sequence[Any]) -> Inbox | None:
    """None: the server's epoch is over."""
    if reply[0] == b"fenced":
        return None
    _, sequence, left, lost = reply
    return Inbox(int(sequence), int(left), int(lost))
