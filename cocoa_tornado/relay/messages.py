"""The messages between the servers of a deployment: frozen values, so that an adapter adds only transport. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import msgspec

from ..routing.address import Address, Devices, Group, User
from ..rules.claims import Claim, Generation
from ..rules.close_codes import CloseReason
from ..rules.terms import Terms

ENVELOPE_BYTES = 64
"""The bytes that a message counts as in addition to its strings and payloads."""
UNKNOWN_PLACE: Final = -1
"""Of a transient message: a later one may have been stored, and it is not known under which number. The message is
dropped, because it might overtake."""


class ForwardedMessage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One record for devices that the receiving server holds, as that server's router would have made it.

    It is a Struct because a dataclass takes ten times as long to make, and to encode.

    :ivar address: a device or, for a record that is for a user, a group or everyone, those of its devices that the
        receiving server holds
    :ivar payload: UTF-8, as the device receives it
    :ivar timestamp_ms: of its record, Unix milliseconds; 0: unknown
    :ivar source: the partition of its record, such as ``transcription.results/3``
    :ivar offset: of its record in that partition
    :ivar terms: how to deliver it; None: the defaults
    :ivar after: with a mailbox, the number of the stored message that it comes after, in its lane of the device's box,
        or :data:`UNKNOWN_PLACE`; None: nothing is known of what was stored before or after it
    :ivar places: the same for single devices, in place of ``after``
    """

    address: Address
    payload: bytes
    timestamp_ms: int
    source: str
    offset: int
    terms: Terms | None = None
    after: int | None = None
    places: Mapping[str, int] | None = None

    def __repr__(self) -> str:
        return f"<ForwardedMessage {self.source}/{self.offset} for {self.address!r}>"  # never its text


def _length_of(address: Address) -> int:
    if isinstance(address, str):
        return len(address)
    device_ids = address.device_ids if isinstance(address, Devices) else address.excluded
    name = address.name if isinstance(address, Group) else str(address.user_id) if isinstance(address, User) else ""
    return len(name) + sum(map(len, device_ids))


def size_of(message: ForwardedMessage) -> int:
    strings = _length_of(message.address) + len(message.source)
    if message.terms is not None:
        terms = message.terms
        strings += len(terms.interim_of) + len(terms.collapse_key or "") + len(terms.id or "")
    if message.places:
        strings += sum(map(len, message.places)) + 8 * len(message.places)
    return ENVELOPE_BYTES + strings + len(message.payload)


def _count_of(message: ForwardedMessage) -> int:
    return len(message.address.device_ids) if isinstance(message.address, Devices) else 1


@dataclass(frozen=True, slots=True)
class Forward:
    """Messages for devices that the receiving server holds, in the order in which they were read."""

    kind: ClassVar[str] = "forward"
    messages: tuple[ForwardedMessage, ...]

    @property
    def count(self) -> int:
        return sum(map(_count_of, self.messages))

    @property
    def size_bytes(self) -> int:
        return sum(map(size_of, self.messages))


@dataclass(frozen=True, slots=True)
class WakeUp:
    """Devices of the receiving server with new messages in their boxes. If one is lost, messages are only late."""

    kind: ClassVar[str] = "wake_up"
    device_ids: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.device_ids)

    @property
    def size_bytes(self) -> int:
        return sum(ENVELOPE_BYTES + len(device_id) for device_id in self.device_ids)


class _One:
    """A message that counts as one."""

    __slots__ = ()

    @property
    def count(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class WakeUpMembers(_One):
    """Those devices of a user, a group or everyone that the receiving server holds may have new messages in their
    boxes."""

    kind: ClassVar[str] = "wake_up"
    address: Address

    @property
    def size_bytes(self) -> int:
        return ENVELOPE_BYTES + _length_of(self.address)


@dataclass(frozen=True, slots=True)
class _Small(_One):
    """A message about one device."""

    device_id: str

    @property
    def size_bytes(self) -> int:
        return ENVELOPE_BYTES + len(self.device_id)


@dataclass(frozen=True, slots=True)
class Challenge(_Small):
    """Asks the holder's server whether its connection is alive. It always answers, with an :class:`Answer`.

    :ivar holder: the claim under which the receiving server holds the device, or is about to
    :ivar challenger: the claim that the sender cannot have granted until then
    """

    kind: ClassVar[str] = "challenge"
    holder: Claim
    challenger: Claim


@dataclass(frozen=True, slots=True)
class Answer(_Small):
    """Answers a :class:`Challenge`.

    ``alive``: the connection has shown a sign of life since the challenge. ``gone``: the sender does not hold the
    device under that claim any more. The challenger may claim again, but is not guaranteed the grant.
    """

    kind: ClassVar[str] = "answer"
    holder: Claim
    challenger: Claim
    verdict: Literal["alive", "gone"]


@dataclass(frozen=True, slots=True)
class Eviction(_Small):
    """Asks the holder's server to end one connection, and no other of its device.

    :ivar generation: of the grant; a server that does not hold that grant does nothing
    """

    kind: ClassVar[str] = "eviction"
    generation: Generation
    reason: CloseReason


@dataclass(frozen=True, slots=True)
class Query(_One):
    """Asks the receiving server for something that an operator wants to know, or to have done. It sends a
    :class:`Reply`, unless it does not know such queries.

    :ivar number: of the query, for the reply; unique for its sender
    :ivar about: what is asked
    :ivar body: JSON, by ``about``
    """

    kind: ClassVar[str] = "query"
    number: int
    about: str
    body: bytes

    @property
    def size_bytes(self) -> int:
        return ENVELOPE_BYTES + len(self.about) + len(self.body)


@dataclass(frozen=True, slots=True)
class Reply(_One):
    """Answers a :class:`Query`.

    :ivar number: of the query
    :ivar body: JSON of the topic's type
    """

    kind: ClassVar[str] = "reply"
    number: int
    body: bytes

    @property
    def size_bytes(self) -> int:
        return ENVELOPE_BYTES + len(self.body)


@dataclass(frozen=True, slots=True)
class Fence(_One):
    """Marks a position among the messages of its sender: all earlier ones were received before it.

    :ivar worker: number of the sender under its parent; :ivar number: of the fence
    """

    kind: ClassVar[str] = "fence"
    worker: int
    number: int

    @property
    def size_bytes(self) -> int:
        return ENVELOPE_BYTES


RelayMessage = Forward | WakeUp | WakeUpMembers | Challenge | Answer | Eviction | Query | Reply | Fence
