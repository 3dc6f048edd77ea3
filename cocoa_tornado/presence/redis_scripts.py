"""Presence in Redis: its keys, and the arguments and replies of its scripts (``redis_lua.py``). No I/O.

All keys begin with ``cocoa:{box}:p:``, so they are in one slot of a cluster, together with the mailbox. Nothing has a
TTL: Redis expires by wall clock.

===============  ======  ====================================================================================
``meta``         hash    ``term``, ``run`` (the Redis process in which it began), ``gen`` (the number of the
                         last generation), ``settled`` (1: new connections may be granted)
``servers``      hash    epoch -> beat, for each server that may hold devices
``info``         hash    epoch -> JSON, as the server's last BEAT with one had it
``h:<bucket>``   hash    device -> holders: ``epoch:number:generation``, separated by spaces, oldest first.
                         Those whose epoch is not in ``servers`` hold nothing
``in:<epoch>``   stream  the inbox of a server, and
``q:<epoch>``    hash    what waits in it (``relay/redis_lua.py``); both end with the epoch
===============  ======  ====================================================================================

``KEYS[1]`` of each script is ``meta``. Replies are lists whose first item is a word. Two of them are raised by the
parsers: ``term`` (:class:`TermOver`) and ``fenced`` (:class:`EpochOver`); the script has changed nothing then. JOIN has
neither of them; RELEASE, HOLDERS, FENCE and SETTLE are not for one epoch, so they have no ``fenced``.

All scripts but JOIN are idempotent. JOIN is sent once for each epoch: a copy that comes late must not bring back an
epoch that has been fenced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from ..rules.claims import Claim, bucket_of
from . import redis_lua as lua

META: Final = b"cocoa:{box}:p:meta"
HOLDERS_PREFIX: Final = b"cocoa:{box}:p:h:"
FOREIGN: Final = b"?"
"""In the reply of HOLDERS: the bucket of this device is not a hash. It counts as without a holder."""
MAX_BATCH: Final = 100
"""Devices in one CLAIM, RELEASE or HOLDERS. Redis does nothing else while a script runs."""
TERM_ORIGIN_S: Final = 1_767_225_600
"""Unix time of the first moment of 2026: terms count milliseconds from here, and stay small."""

TEXTS: Final = {
    "join": lua.JOIN,
    "beat": lua.BEAT,
    "claim": lua.CLAIM,
    "release": lua.RELEASE,
    "holders": lua.HOLDERS,
    "fence": lua.FENCE,
    "settle": lua.SETTLE,
    "leave": lua.LEAVE,
}
"""Lua by name."""

_NOTHING: Final[dict[bytes, Literal["settling", "late", "foreign"]]] = {
    b"settling": "settling",
    b"late": "late",
    b"foreign": "foreign",
}
_MODES: Final = {"new": b"new", "keep": b"keep"}

Arguments = list[bytes]
"""``ARGV`` of a script."""
Reply = Sequence[Any]
"""As the client returns it, with strings as bytes."""


class TermOver(Exception):
    """Another term has begun, or this is another Redis process: the server must join again. Nothing was changed."""


class EpochOver(Exception):
    """The server was fenced: others may hold its devices. Nothing was changed."""


class Holding(NamedTuple):
    """One holder of a device.

    :ivar number: of its generation, in the current term
    """

    claim: Claim
    number: int


class ClaimItem(NamedTuple):
    """One claim of a batch.

    :ivar number: of the claim
    :ivar mode: ``new``: only if the term is settled; ``keep``: for a connection that was granted in an earlier term and
        cannot have been fenced in it
    :ivar kept: numbers of the other claims under which this server holds the device, or claims it for a connection.
        Any lower number that the store has for this epoch is a claim that was given up: its slot is freed
    """

    device_id: str
    number: int
    mode: Literal["new", "keep"] = "new"
    kept: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class JoinReply:
    """:ivar term: of all generations from now on; greater than the one before if the store may have lost something
    :ivar is_settled: new connections may be granted
    """

    term: int
    is_settled: bool


@dataclass(frozen=True, slots=True)
class BeatReply:
    """:ivar mine: the beat of this epoch
    :ivar beats: of all epochs, this one among them
    :ivar infos: JSON of all epochs that have sent one
    """

    mine: int
    is_settled: bool
    beats: dict[str, int]
    infos: dict[str, str]


@dataclass(frozen=True, slots=True)
class Granted:
    """:ivar number: of the generation, in the current term"""

    number: int


@dataclass(frozen=True, slots=True)
class Held:
    """No slot of the device is free. The holders, oldest first."""

    holders: tuple[Holding, ...]


ClaimReply = Granted | Held | Literal["settling", "late", "foreign"]
"""``settling``: the term is not settled, nothing new is granted yet; ``late``: this server has claimed the device again
since, so this request is a late copy; ``foreign``: the bucket of this device is not a hash. Nothing is granted then."""


# -- arguments


def join_arguments(run: str, known_term: int, epoch: str, wall_s: float) -> Arguments:
    """Begin to exist, in the current term or, if the store may have lost something, in a new one.

    :param run: run id and master replication id of the Redis process, read with INFO on this very connection just
        before: Redis may change the second without a restart
    :param known_term: the latest that this server knows, 0: none
    :param epoch: was never used before
    :param wall_s: Unix time
    """
    since = max(0, int((wall_s - TERM_ORIGIN_S) * 1000))
    return [run.encode(), b"%d" % known_term, epoch.encode(), b"%d" % since]


def beat_arguments(stamp: str, epoch: str, seen: int, info: str = "") -> Arguments:
    """Be alive. The beat grows by one if ``seen`` is the last one.

    :param seen: the last beat in a reply, 0 after JOIN
    :param info: JSON for the other servers; '': as before
    """
    return [stamp.encode(), epoch.encode(), b"%d" % seen, info.encode()]


def claim_arguments(stamp: str, epoch: str, per_device: int, items: Iterable[ClaimItem]) -> Arguments:
    """Claim devices. A claim that holds its device already is granted again, with the same generation."""
    arguments = [stamp.encode(), epoch.encode(), b"%d" % per_device]
    for device_id, number, mode, kept in items:
        device = device_id.encode()
        numbers = b",%b," % b",".join([b"%d" % number for number in kept]) if kept else b",,"
        arguments += (b"%d" % bucket_of(device), device, b"%d" % number, _MODES[mode], numbers)
    return arguments


def release_arguments(stamp: str, items: Iterable[tuple[str, Claim]]) -> Arguments:
    """Free the slots of these very claims, if they have one.

    :param items: devices and claims
    """
    arguments = [stamp.encode()]
    for device_id, claim in items:
        arguments += (*_place_of(device_id), claim.server.encode(), b"%d" % claim.number)
    return arguments


def holders_arguments(stamp: str, device_ids: Iterable[str]) -> Arguments:
    """Look up the holders of devices."""
    arguments = [stamp.encode()]
    for device_id in device_ids:
        arguments += _place_of(device_id)
    return arguments


def fence_arguments(stamp: str, epoch: str, beat: int) -> Arguments:
    """End another server's epoch, unless it has sent a later beat than this one."""
    return [stamp.encode(), epoch.encode(), b"%d" % beat]


def settle_arguments(stamp: str) -> Arguments:
    """From now on, new connections may be granted in this term."""
    return [stamp.encode()]


def leave_arguments(stamp: str, epoch: str) -> Arguments:
    """End this server's epoch: its devices are free."""
    return [stamp.encode(), epoch.encode()]


def _place_of(device_id: str) -> tuple[bytes, bytes]:
    """Its bucket and its name."""
    device = device_id.encode()
    return b"%d" % bucket_of(device), device


# -- replies


def join_reply(reply: Reply) -> JoinReply:
    _, term, settled = reply
    return JoinReply(int(term), settled == b"1")


def beat_reply(reply: Reply) -> BeatReply:
    """:raises TermOver, EpochOver:"""
    _, mine, settled, beats, infos = _checked(reply)
    return BeatReply(
        int(mine),
        settled == b"1",
        {epoch.decode(): int(beat) for epoch, beat in _pairs(beats)},
        {epoch.decode(): info.decode() for epoch, info in _pairs(infos)},
    )


def claim_replies(reply: Reply) -> list[ClaimReply]:
    """In the order of the items.

    :raises TermOver, EpochOver: for all of them
    """
    return [_claim_reply(item) for item in _checked(reply)[1:]]


def holders_replies(reply: Reply) -> list[tuple[Holding, ...]]:
    """In the order of the devices; an empty tuple for one without a holder.

    :raises TermOver:
    """
    return [() if item == FOREIGN else _holdings(item) for item in _checked(reply)[1:]]


def foreign_buckets(device_ids: Iterable[str], reply: Reply) -> set[bytes]:
    """The keys of these devices that somebody else has written: they have another type.

    :param reply: of HOLDERS
    """
    pairs = zip(device_ids, reply[1:], strict=True)
    return {bucket_key(device_id) for device_id, item in pairs if item == FOREIGN}


def bucket_key(device_id: str) -> bytes:
    return HOLDERS_PREFIX + _place_of(device_id)[0]


def done(reply: Reply) -> bool:
    """Of RELEASE, FENCE, SETTLE and LEAVE: False if FENCE has changed nothing, because there was a later beat, or the
    epoch had ended.

    :raises TermOver, EpochOver:
    """
    return _checked(reply)[1:] != [b"0"]


def _checked(reply: Reply) -> list[Any]:
    if reply[0] == b"term":
        raise TermOver
    if reply[0] == b"fenced":
        raise EpochOver
    return list(reply)


def _claim_reply(item: bytes) -> ClaimReply:
    word, _, rest = item.partition(b" ")
    if word == b"granted":
        return Granted(int(rest))
    if word == b"held":
        return Held(_holdings(rest))
    return _NOTHING[word]


def _holdings(value: bytes) -> tuple[Holding, ...]:
    return tuple(_holding(holder) for holder in value.split())


def _holding(holder: bytes) -> Holding:
    epoch, number, generation = holder.split(b":")
    return Holding(Claim(epoch.decode(), int(number)), int(generation))


def _pairs(flat: Sequence[bytes]) -> Iterable[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)
