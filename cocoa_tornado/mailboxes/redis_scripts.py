"""The mailbox's keys in Redis, and the Lua scripts that change them. No I/O.

All keys begin with ``cocoa:{box}:``, whose braces keep them in one slot of a cluster:

===================  ======  =================================================================================
``meta``             hash    ``key`` (for cursors), ``schema``, ``given`` (messages ever stored), ``messages``,
                             ``bytes``, ``era`` (the epoch, rules/box.py), ``run`` (the run id of the Redis process
                             in which it began), ``emptied`` (the epoch that began when all messages were lost),
                             ``sequence`` (the number of the last member)
``b:<device>``       hash    the box: ``base last gone acked written`` of the normal lane, ``bytes`` in both lanes,
                             ``touched`` (ms), ``cuts`` (``<epoch>:<last>`` for each, oldest first). If the box is
                             not plain (``redis_lua_boxes.py``): ``more``, ``retracted`` (rules/retracted.py), and
                             ``hlast hgone hacked hwritten hcuts hretracted`` of the high lane, whose base is the same
``m:<device>``       stream  the messages of its normal lane: ``<number>-0``: ``payload stored_ms timestamp_ms``, and
                             as far as they apply ``expires low key audience shared size``; none while it is empty
``h:<device>``       stream  those of its high lane
``x:<device>``       zset    places (such as ``n12``, ``h3``) of messages with a ttl of their own, by its end (ms)
``l:<device>``       zset    numbers of its messages of low priority
``k:<device>``       hash    collapse keys, and the places of their messages
``i:<device>``       hash    the ids of its last messages, see ``redis_lua_delivery.py``
``due``              zset    devices, by a time (ms): ttl after it, or later, a message in the box expires
``known``            zset    members, by the time (ms) of their last connection
``members``          hash    the audiences of each member, one a line
``a:<audience>``     zset    its members, by a number that grows with each that joins
``fans``             list    ids of the fan-outs that are not complete, oldest first
``f:<id>``           hash    one of them; ``done`` and ``up_to`` are numbers of members
``d:<id>``           set     devices that it is not for, or that have it although their turn is still to come
``p:<id>``           string  the payload of a fan-out that is stored once for all
``seen:<source>``    list    runs of rules/seen.py: id of the group, first offset (8 bytes), timestamps (8 bytes each)
``answer:<id>``      hash    the last group and the last step of one gateway, and the replies to them
===================  ======  =================================================================================

A script is atomic, with two exceptions that shape all of these: an error in the middle keeps the writes before it, and
Redis rejects a script for lack of memory at its first write only. So commands on keys that may have a wrong type do not
raise. The scripts that store begin with a write that Redis rejects when memory is full; the scripts that delete begin
with one that Redis accepts.

Other programs may write to these keys, and Redis may evict them. A key of a wrong type, or a box whose fields are not
numbers, affects only its device, its audience, or the remembered offsets of its source; the replies name it. If a box
is missing while its device is in ``due``, something else removed it. The script rebuilds it from its streams. If they
are gone too, the new box counts one message as missed, since nothing is known about the lost ones.

A gateway of the previous release may use the mailbox at the same time. It knows neither the high lane nor members and
fan-outs, and leaves their keys alone.
"""

from __future__ import annotations

from typing import Final

from ..redis_store.inboxes import BELLS
from ..redis_store.scripts import PREFIX, Script
from .redis_lua_base import BASE, GUARD, MAILBOX
from .redis_lua_boxes import BOXES, LEAVING, MESSAGES, RETRACTED, TRIM
from .redis_lua_delivery import DELIVER, IDS, LIMITS, SHRINK, SPECIAL
from .redis_lua_fan_outs import FAN_OUTS
from .redis_lua_reading import FIND_ID as _FIND_ID
from .redis_lua_reading import OPEN as _OPEN
from .redis_lua_reading import READ as _READ
from .redis_lua_storing import APPEND as _APPEND
from .redis_lua_storing import FAN_OUT as _FAN_OUT
from .redis_lua_storing import JOIN as _JOIN
from .redis_lua_upkeep import MARK as _MARK
from .redis_lua_upkeep import SWEEP as _SWEEP

META: Final = PREFIX + b"meta"
SCHEMA: Final = 1
GROUP_ID_BYTES: Final = 16


def _lazily(name: str, text: str, *functions: str) -> str:
    """Lua whose functions are created when one of them is first needed, as ``name().function``."""
    exports = ", ".join(f"{function} = {function}" for function in functions)
    return f"local {name} = lazily(function()\n{text}\nreturn {{{exports}}}\nend)\n"


_RETRACTED: Final = _lazily("retracted", RETRACTED, "with_number", "above", "count_between")
_BOXES: Final = BASE + MAILBOX + MESSAGES + BOXES
_LEAVING: Final = ("advance", "find", "count_out", "drop", "retract")
_SPECIAL: Final = ("message_of", "prepare", "add_to_indexes", "replace_stream", "cut", "shrink")
_FANNING: Final = ("pull_all", "begin", "step_oldest", "save_fans")

_PRESENCE: Final = """
local presence = root .. 'p:'
local function is_alive(epoch) return (try('HGET', presence .. 'servers', epoch) or false) ~= false end
"""

_UPKEEP: Final = _BOXES + TRIM + _RETRACTED + _lazily("leaving", LEAVING, *_LEAVING)
_STORING: Final = "".join(
    (
        *(_BOXES, TRIM, LIMITS, _RETRACTED, _lazily("special", LEAVING + SHRINK + IDS + SPECIAL, *_SPECIAL)),
        *(DELIVER, _lazily("fanning", FAN_OUTS, *_FANNING)),
    )
)

OPEN = Script(BASE, _OPEN, key=META)
READ = Script(_BOXES, GUARD, _READ, key=META)
FIND_ID = Script(_BOXES, _FIND_ID, key=META)
APPEND = Script(_STORING, _lazily("bells", _PRESENCE + BELLS, "ring"), _APPEND, key=META)
FAN_OUT = Script(_STORING, _FAN_OUT, key=META)
JOIN = Script(_UPKEEP, GUARD, _JOIN, key=META)
MARK = Script(_UPKEEP, GUARD, _MARK, key=META)
SWEEP = Script(_UPKEEP, _SWEEP, key=META)

SCRIPTS: Final = (OPEN, READ, FIND_ID, APPEND, FAN_OUT, JOIN, MARK, SWEEP)
