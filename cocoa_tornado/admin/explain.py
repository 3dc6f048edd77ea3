"""Predicts what would happen to a record if it were published now, with the router's own rules. Pure, except
:class:`Here`."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from ..hub import Hub
from ..routing.address import Address, Devices, Group, User, recipients
from ..routing.plan import is_fan_out, messages_of, plan
from ..rules.records import Record
from .requests import user_of, user_text
from .servers import Topic

MAX_DEVICES: Final = 1_000
Would = Literal["send", "store", "drop"]


class HolderQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Which addressed devices a server holds: of those that are named, or of an audience.

    :ivar devices: null: those of the user, of the group or, without either, all
    :ivar user: JSON text of the user id
    :ivar excluded: only of an audience
    """

    devices: tuple[str, ...] | None = None
    user: str | None = None
    group: str | None = None
    excluded: tuple[str, ...] = ()


class HolderAnswer(msgspec.Struct, frozen=True):
    """:ivar server: its name
    :ivar devices: the first :data:`MAX_DEVICES` + 1, by the bytes of their ids
    """

    server: str
    devices: tuple[str, ...]


HOLDERS: Final = Topic("holders", HolderQuestion, HolderAnswer)


class Here:
    """The devices of this server's Hub. IOLoop thread only.

    :param name: returns the name of this server
    """

    def __init__(self, hub: Hub, name: Callable[[], str]) -> None:
        self._hub, self._name = hub, name

    async def answer(self, question: HolderQuestion) -> HolderAnswer:
        found = heapq.nsmallest(MAX_DEVICES + 1, self._addressed(question))
        return HolderAnswer(self._name(), tuple(found))

    def _addressed(self, question: HolderQuestion) -> Collection[str]:
        hub = self._hub
        if question.devices is not None:
            return [each for each in question.devices if hub.is_device_connected(each)]
        if question.user is not None:
            found = hub.devices_of_user(user_of(question.user))
        else:
            found = hub.devices() if question.group is None else hub.devices_of_group(question.group)
        return set(found).difference(question.excluded)


class Verdict(msgspec.Struct, frozen=True):
    """What would happen to the message for one device."""

    device_id: str
    would: Would
    why: str


def question_for(address: Address, members: Sequence[str] | None) -> HolderQuestion:
    """The question to the servers.

    :param members: the recipients, if the mailbox finds them
    """
    if members is not None:
        return HolderQuestion(devices=tuple(members))
    if isinstance(address, str | Devices):
        return HolderQuestion(devices=recipients(address, _Found(())))
    excluded = tuple(sorted(address.excluded))
    if isinstance(address, User):
        return HolderQuestion(user=user_text(address.user_id), excluded=excluded)
    return HolderQuestion(group=address.name if isinstance(address, Group) else None, excluded=excluded)


def explain(
    record: Record,
    answers: Iterable[HolderAnswer],
    *,
    has_mailbox: bool,
    members: Sequence[str] | None = None,
    now_ms: float = 0,
) -> list[Verdict]:
    """Return one verdict for each device that the record addresses, in the order in which the router has them.

    :param answers: to :func:`question_for`
    :param members: the recipients of a record that the mailbox fans out; None for other records
    :param now_ms: Unix milliseconds; 0: its ``ttl`` has not ended
    """
    holders: dict[str, list[str]] = {}
    for answer in answers:
        for device_id in answer.devices:
            holders.setdefault(device_id, []).append(answer.server)
    if members is not None and is_fan_out(record):
        messages = [(0, device_id) for device_id in members]
    else:
        messages = messages_of([record], _Found(sorted(holders)), has_mailbox=has_mailbox)
    options = record.options
    if options is not None and 0 < options.expires_ms(record.timestamp_ms, now_ms) < now_ms:
        return [Verdict(device_id, "drop", f"its ttl of {options.ttl_s} s has ended") for _, device_id in messages]
    # For this function, this server counts as another one too.
    routed = plan(messages, (), holders)
    unheld = frozenset(routed.unheld)
    return [
        Verdict(message[1], *_unheld(record, has_mailbox=has_mailbox))
        if message in unheld
        else Verdict(message[1], "send", f"connected to {', '.join(holders[message[1]])}")
        for message in messages
    ]


def counts_of(verdicts: Iterable[Verdict]) -> Mapping[str, int]:
    return Counter(verdict.would for verdict in verdicts)


def _unheld(record: Record, *, has_mailbox: bool) -> tuple[Would, str]:
    """The fate of a message whose device no server holds."""
    if not has_mailbox:
        return "drop", "not connected, and there is no mailbox"
    if record.interim_of:
        return "drop", "not connected, and an interim is never stored"
    if record.is_transient:
        return "drop", "not connected, and a record with ttl 0 is never stored"
    return "store", "not connected"


class _Found:
    """A :class:`~..routing.address.Directory` of the devices that the servers have named for one address."""

    def __init__(self, device_ids: Collection[str]) -> None:
        self._device_ids = device_ids

    def devices(self) -> Collection[str]:
        return self._device_ids

    def devices_of_user(self, user_id: int | str) -> Collection[str]:
        return self._device_ids

    def devices_of_group(self, name: str) -> Collection[str]:
        return self._device_ids
