"""Where the messages of a batch go. Pure, and total: every message is in the plan.

A *message* is one record for one device: a record that addresses many devices is many messages. It refers to its record
by the record's index in the batch, so it costs no copy, and equal records stay distinct.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from operator import itemgetter
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from ..rules.records import Record
from .address import Address, Devices, Directory, Everyone, Group, User, recipients

Message: TypeAlias = tuple[int, str]
"""The index of the record in the batch, and the device."""
Part: TypeAlias = tuple[int, str | None]
"""A message or, without a device, a record whose devices are found elsewhere: by the mailbox for a fan-out, by another
server for those that it holds."""


class Plan(NamedTuple):
    """What to do with each message. All sequences are in the order of the records.

    :ivar local: for devices that are connected to this server
    :ivar forward: for devices that other servers hold, by server
    :ivar unheld: for devices that no server holds
    """

    local: Sequence[Message] = ()
    forward: Mapping[str, Sequence[Part]] = MappingProxyType({})
    unheld: Sequence[Message] = ()


def away_of(records: Sequence[Record], here: Container[str]) -> list[str]:
    """Return the devices that records address and that are not connected to this server. Devices of a user, a group or
    everyone are not among them, because these are looked up in this server's own table.

    Nearly every batch is only for devices that are here and needs no :func:`plan`. This detects that in a fifth of the
    time.
    """
    # An address of several devices is never a key of ``here``.
    away = [record[0] for record in records if record[0] not in here]
    if all(type(address) is str for address in away):
        return away  # type: ignore[return-value]  # each is a str, as has just been seen
    return [device_id for address in away for device_id in _named(address) if device_id not in here]


def _named(address: Address) -> Sequence[str]:
    """The devices that an address names."""
    if isinstance(address, str):
        return (address,)
    return address.device_ids if isinstance(address, Devices) else ()


def shared_by(records: Sequence[Record], *, has_mailbox: bool) -> list[int]:
    """The indexes of the records that each server sends to those of the devices that it holds: records for a user, a
    group or everyone, unless a mailbox finds their recipients."""
    return [
        at
        for at, record in enumerate(records)
        if isinstance(record.address, (User, Group, Everyone)) and not (has_mailbox and is_fan_out(record))
    ]


def is_fan_out(record: Record) -> bool:
    """True if a mailbox finds the recipients of this record, which is for a user, a group or everyone."""
    return isinstance(record.address, (User, Group, Everyone)) and record.is_for_mailbox


def messages_of(records: Sequence[Record], directory: Directory, *, has_mailbox: bool = False) -> list[Message]:
    """Expand each record into one message for each device that it addresses, in the order of the records.

    A record that addresses no device, such as one for a group without members, yields no message. Nor do fan-outs, if
    there is a mailbox.
    """
    messages: list[Message] = []
    for at, record in enumerate(records):
        address = record[0]
        if type(address) is str:  # nearly always, and the fastest comparison
            messages.append((at, address))
        elif not (has_mailbox and is_fan_out(record)):
            messages.extend([(at, device_id) for device_id in recipients(address, directory)])
    return messages


def without_recipient(records: Sequence[Record], messages: Iterable[Message], *, has_mailbox: bool = False) -> int:
    """Count the records that address no device, apart from fan-outs.

    :param messages: from :func:`messages_of`
    """
    if all(type(record[0]) is str for record in records):
        return 0
    found = {at for at, _ in messages}
    return sum(at not in found and not (has_mailbox and is_fan_out(record)) for at, record in enumerate(records))


def recipients_of(records: Sequence[Record], messages: Iterable[Message]) -> dict[int, list[str]]:
    """The devices of each record that is not for a single one, by its index."""
    found: dict[int, list[str]] = {}
    if not all(type(record[0]) is str for record in records):
        for at, device_id in messages:
            if type(records[at][0]) is not str:
                found.setdefault(at, []).append(device_id)
    return found


def to_append(records: Sequence[Record], messages: Iterable[Message]) -> Sequence[Part]:
    """Return what is appended to a mailbox, in the order of the records: all but the transient messages whose delivery
    does not depend on what is in a box.

    This does not depend on which devices are connected.

    :param messages: from :func:`messages_of`, with a mailbox
    """
    appended = [message for message in messages if records[message[0]].is_for_mailbox]
    return in_order(appended, [at for at, record in enumerate(records) if is_fan_out(record)])


def deadlines(records: Sequence[Record], now_ms: float) -> dict[int, int]:
    """When the ``ttl`` of each record ends, Unix milliseconds, by the record's index; only for records that have one.

    :param now_ms: when they were read
    """
    found = {}
    for at, record in enumerate(records):
        options = record[5]
        if options is not None and options.ttl_s:
            found[at] = options.expires_ms(record.timestamp_ms, now_ms)
    return found


def in_order(messages: Sequence[Part], whole: Sequence[int]) -> Sequence[Part]:
    """Merge messages, and the indexes of records that are not expanded into messages, in the order of the records."""
    return sorted([*messages, *((at, None) for at in whole)], key=itemgetter(0)) if whole else messages


def plan(
    messages: Sequence[Message],
    here: Container[str],
    holders: Mapping[str, Sequence[str]],
    others: Sequence[str] = (),
    shared: Sequence[int] = (),
    both: Sequence[Message] = (),
) -> Plan:
    """Decide where each message goes. With a mailbox, decide once they are stored: a device that connects in the
    meantime may have looked into its box too early to find them.

    :param messages: from :func:`messages_of`
    :param here: the devices that are connected to this server
    :param holders: by device, the other servers that hold it; ignored for devices that are here, but in ``both``
    :param others: all other servers
    :param shared: from :func:`shared_by`; the other servers get these records as they are
    :param both: messages that other servers get as well if their devices are here: these may have several connections
    """
    # The cases of a message, in order; a device that is not in ``holders`` is held by no other server:
    #   1. its device is here                    -> local, whatever others say: this server's own table is the latest;
    #                                               and forward, if it is one of ``both`` and other servers hold it
    #   2. it is one of a shared record, and there are other servers: its device has just left -> unheld; if another
    #      server holds it now, that one finds it
    #   3. other servers hold it                 -> forward, to each of them: more than one only if a device may have
    #                                               several connections
    #   4. no server holds it                    -> unheld
    local, unheld = [], []
    forward: dict[str, list[Part]] = {}
    whole = frozenset(shared) if others else frozenset()
    for message in messages:
        at, device_id = message
        if device_id in here:
            local.append(message)
        elif at in whole or not (servers := holders.get(device_id)):
            unheld.append(message)
        else:
            for server in dict.fromkeys(servers):
                forward.setdefault(server, []).append(message)
    for message in both:  # a device is here or not, so this keeps the order of each device's messages
        if message[1] in here and message[0] not in whole:
            for server in dict.fromkeys(holders.get(message[1], ())):
                forward.setdefault(server, []).append(message)
    if whole:
        for server in others:
            forward[server] = list(in_order(forward.get(server, ()), shared))
    if not forward:
        return Plan(tuple(local), unheld=tuple(unheld))
    by_server = {server: tuple(_by_record(of_server) if both else of_server) for server, of_server in forward.items()}
    return Plan(tuple(local), MappingProxyType(by_server), tuple(unheld))


def _by_record(messages: Sequence[Part]) -> Sequence[Part]:
    return sorted(messages, key=itemgetter(0))


def stale_messages(
    records: Sequence[Record], messages: Sequence[Message], stored_earlier: Container[Message]
) -> frozenset[Message]:
    """The transient messages that precede a message which was stored earlier. The batch is being read again, and the
    device already has newer messages.

    A message that was dropped because of its ``id`` counts as stored earlier: it may have been, and a transient message
    is sent at most once.

    :param messages: the transient messages that are for no mailbox, and those of ``stored_earlier``, in the order of
        the records
    """
    stale, known_later = set(), set()
    for message in reversed(messages):
        at, device_id = message
        if message in stored_earlier:
            known_later.add(device_id)
        elif device_id in known_later and records[at].is_transient:
            stale.add(message)
    return frozenset(stale)
