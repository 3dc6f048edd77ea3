"""The messages between servers as bytes, for adapters that reach other processes. Pure.

A message is a MessagePack array: the version, the kind, and the fields in a fixed order. Servers of two neighboring
releases share a deployment, so:

- a later release may append fields, which an earlier one ignores, and their absence stands for a default;
- it may add kinds of messages and of addresses, which an earlier one skips and counts;
- any other change raises the version, and an earlier release skips and counts every message of a later version.

The mailbox's scripts in Redis write messages of the kind ``wake`` themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple, assert_never

import msgspec

from ..routing.address import Address, Devices, Everyone, Group, User
from ..rules.claims import Claim, Generation
from ..rules.close_codes import CloseReason
from ..rules.terms import Terms
from .messages import (
    Answer,
    Challenge,
    Eviction,
    Fence,
    Forward,
    ForwardedMessage,
    Query,
    RelayMessage,
    Reply,
    WakeUp,
    WakeUpMembers,
)

VERSION: Final = 1
_LEAST: Final = -(2**63)
_GREATEST: Final = 2**64 - 1
"""MessagePack has no integers beyond these: the id of such a user is sent in hexadecimal digits."""


class Decoded(NamedTuple):
    """The messages that a server can decode from some bytes.

    :ivar message: None: nothing
    :ivar skipped: how many messages it does not know, or cannot read; those of a :class:`Forward` count one by one
    """

    message: RelayMessage | None
    skipped: int = 0


class _Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A forwarded message whose address and terms are still to be read."""

    address: str | list[Any]
    payload: bytes
    timestamp_ms: int
    source: str
    offset: int
    terms: list[Any] | None = None
    after: int | None = None
    places: dict[str, int] | None = None


class _Head(msgspec.Struct, array_like=True, frozen=True, gc=False):
    version: int
    kind: str


class _Forward(_Head, array_like=True, frozen=True, gc=False):
    messages: list[_Message]


class _WakeUp(_Head, array_like=True, frozen=True, gc=False):
    device_ids: tuple[str, ...]


class _WakeUpMembers(_Head, array_like=True, frozen=True, gc=False):
    address: str | list[Any]


class _Challenge(_Head, array_like=True, frozen=True, gc=False):
    device_id: str
    holder: Claim
    challenger: Claim


class _Answer(_Challenge, array_like=True, frozen=True, gc=False):
    verdict: Literal["alive", "gone"]


class _Eviction(_Head, array_like=True, frozen=True, gc=False):
    device_id: str
    generation: Generation
    reason: CloseReason


class _Query(_Head, array_like=True, frozen=True, gc=False):
    number: int
    about: str
    body: bytes


class _Reply(_Head, array_like=True, frozen=True, gc=False):
    number: int
    body: bytes


class _Fence(_Head, array_like=True, frozen=True, gc=False):
    worker: int
    number: int


_ENCODE: Final = msgspec.msgpack.Encoder().encode
_HEAD: Final = msgspec.msgpack.Decoder(_Head)
_FORWARD: Final = msgspec.msgpack.Decoder(_Forward)
_WAKE_UP: Final = msgspec.msgpack.Decoder(_WakeUp)
_WAKE_UP_MEMBERS: Final = msgspec.msgpack.Decoder(_WakeUpMembers)
_CHALLENGE: Final = msgspec.msgpack.Decoder(_Challenge)
_ANSWER: Final = msgspec.msgpack.Decoder(_Answer)
_EVICTION: Final = msgspec.msgpack.Decoder(_Eviction)
_QUERY: Final = msgspec.msgpack.Decoder(_Query)
_REPLY: Final = msgspec.msgpack.Decoder(_Reply)
_FENCE: Final = msgspec.msgpack.Decoder(_Fence)


def encode(message: RelayMessage) -> bytes:
    """Every string of the message must be valid Unicode, as those of records and tokens are."""
    match message:
        case Forward(messages):
            return _ENCODE((VERSION, "forward", _plain(messages)))
        case WakeUp(device_ids):
            return _ENCODE((VERSION, "wake", device_ids))
        case WakeUpMembers(address):
            return _ENCODE((VERSION, "members", _encoded(address)))
        case Challenge(device_id, holder, challenger):
            return _ENCODE((VERSION, "challenge", device_id, holder, challenger))
        case Answer(device_id, holder, challenger, verdict):
            return _ENCODE((VERSION, "answer", device_id, holder, challenger, verdict))
        case Eviction(device_id, generation, reason):
            return _ENCODE((VERSION, "evict", device_id, generation, reason))
        case Query(number, about, body):
            return _ENCODE((VERSION, "query", number, about, body))
        case Reply(number, body):
            return _ENCODE((VERSION, "reply", number, body))
        case Fence(worker, number):
            return _ENCODE((VERSION, "fence", worker, number))
        case _:
            assert_never(message)


FORWARD_HEAD: Final = b"\x93" + _ENCODE(VERSION) + _ENCODE("forward")
"""The beginning of a :class:`Forward`. The head of an array and the messages follow, one after the other."""


def encode_each(messages: Sequence[ForwardedMessage]) -> list[bytes]:
    """The messages of a :class:`Forward`, one by one."""
    return [_ENCODE(message) for message in _plain(messages)]


def decode(data: bytes) -> Decoded:
    """Never raises: what cannot be used is skipped and counted."""
    try:
        head = _HEAD.decode(data)
        if head.version != VERSION:
            return Decoded(None, 1)
        match head.kind:
            case "forward":
                return _forward(_FORWARD.decode(data).messages)
            case "wake":
                return Decoded(WakeUp(_WAKE_UP.decode(data).device_ids))
            case "members":
                address = _decoded(_WAKE_UP_MEMBERS.decode(data).address)
                return Decoded(None, 1) if address is None else Decoded(WakeUpMembers(address))
            case "challenge":
                asked = _CHALLENGE.decode(data)
                return Decoded(Challenge(asked.device_id, asked.holder, asked.challenger))
            case "answer":
                said = _ANSWER.decode(data)
                return Decoded(Answer(said.device_id, said.holder, said.challenger, said.verdict))
            case "evict":
                evict = _EVICTION.decode(data)
                return Decoded(Eviction(evict.device_id, evict.generation, evict.reason))
            case "query":
                query = _QUERY.decode(data)
                return Decoded(Query(query.number, query.about, query.body))
            case "reply":
                reply = _REPLY.decode(data)
                return Decoded(Reply(reply.number, reply.body))
            case "fence":
                fence = _FENCE.decode(data)
                return Decoded(Fence(fence.worker, fence.number))
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        pass  # another program wrote it, or a later release that should have raised the version
    return Decoded(None, 1)


def _plain(messages: Sequence[ForwardedMessage]) -> Sequence[object]:
    """The messages with addresses that msgspec encodes as :func:`_decoded` expects: nearly all are plain strings."""
    if all([type(message.address) is str for message in messages]):
        return messages
    return [(_encoded(of.address), *msgspec.structs.astuple(of)[1:]) for of in messages]


def _forward(messages: Sequence[_Message]) -> Decoded:
    taken = []
    for of in messages:
        address = of.address if type(of.address) is str else _decoded(of.address)
        if address is None:
            continue
        terms = None if of.terms is None else _terms(of.terms)
        made = ForwardedMessage(address, of.payload, of.timestamp_ms, of.source, of.offset, terms, of.after, of.places)
        taken.append(made)
    return Decoded(Forward(tuple(taken)) if taken else None, len(messages) - len(taken))


def _encoded(address: Address) -> object:
    if isinstance(address, str):
        return address
    if isinstance(address, Devices):
        return ("devices", address.device_ids)
    if isinstance(address, User):
        user_id, excluded = address.user_id, sorted(address.excluded)
        if isinstance(user_id, int) and not _LEAST <= user_id <= _GREATEST:
            return ("big user", f"{user_id:x}", excluded)
        return ("user", user_id, excluded)
    if isinstance(address, Group):
        return ("group", address.name, sorted(address.excluded))
    if isinstance(address, Everyone):
        return ("everyone", sorted(address.excluded))
    assert_never(address)


def _big_user(digits: str, excluded: frozenset[str]) -> User:
    return User(int(digits, 16), excluded)


_ADDRESSES: Final[dict[str, Any]] = {
    "big user": (_big_user, tuple[str, str, frozenset[str]]),
    "devices": (Devices, tuple[str, tuple[str, ...]]),
    "user": (User, tuple[str, int | str, frozenset[str]]),
    "group": (Group, tuple[str, str, frozenset[str]]),
    "everyone": (Everyone, tuple[str, frozenset[str]]),
}


def _decoded(address: str | list[Any]) -> Address | None:
    """None: an address of a later release. It must never stand for more devices than its sender meant, so one with
    additional fields is unknown too."""
    if isinstance(address, str):
        return address
    known = _ADDRESSES.get(address[0]) if address and isinstance(address[0], str) else None
    if known is None:
        return None
    kind, fields = known
    try:
        _, *values = msgspec.convert(address, fields)
        made: Address = kind(*values)
    except (msgspec.ValidationError, ValueError):
        return None
    return made


def _terms(fields: list[Any]) -> Terms:
    return msgspec.convert(fields[: len(Terms._fields)], Terms)
