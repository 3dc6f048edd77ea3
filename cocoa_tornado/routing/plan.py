"""Where the messages of a batch go. Pure, and total: every message is in the plan.

A *message* is one record for one device: a record that addresses many devices is many messages. It refers to its record
by the record's index in the batch, so it costs no copy, and equal records stay distinct.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from ..rules.records import Record
from .address import Directory, recipients

Message: TypeAlias = tuple[int, str]
"""The index of the record in the batch, and the device."""


class Plan(NamedTuple):
    """What to do with each message. All sequences are in the order of the records.

    :ivar local: for devices that are connected to this server
    :ivar forward: for devices that other servers hold, by server
    :ivar store: to be stored in the mailbox first. Each of them is in one of the others too
    :ivar unheld: for devices that no server holds
    """

    local: Sequence[Message] = ()
    forward: Mapping[str, Sequence[Message]] = MappingProxyType({})
    store: Sequence[Message] = ()
    unheld: Sequence[Message] = ()


def away_of(records: Sequence[Record], here: Container[str]) -> list[str] | None:
    """Return the devices that are not connected to this server, one for each record; None if a record addresses
    anything but one device.

    Nearly every batch is only for single devices that are here and needs no :func:`plan`. This detects that in a fifth
    of the time.
    """
    # An address of several devices is never a key of ``here``.
    away = [record[0] for record in records if record[0] not in here]
    if away and not all(type(address) is str for address in away):
        return None
    return away  # type: ignore[return-value]  # each is a str, as has just been seen


def messages_of(records: Sequence[Record], directory: Directory) -> list[Message]:
    """Expand each record into one message for each device that it addresses, in the order of the records.

    A record that addresses no device, such as one for a group without members, yields no message.
    """
    messages: list[Message] = []
    for at, record in enumerate(records):
        address = record[0]
        if type(address) is str:  # nearly always, and the fastest comparison
            messages.append((at, address))
        else:
            messages.extend([(at, device_id) for device_id in recipients(address, directory)])
    return messages


def without_recipient(records: Sequence[Record], messages: Iterable[Message]) -> int:
    """Count the records that address no device.

    :param messages: from :func:`messages_of`
    """
    if all(type(record[0]) is str for record in records):
        return 0
    return len(records) - len({at for at, _ in messages})


def to_store(records: Sequence[Record], messages: Iterable[Message]) -> list[Message]:
    """Return the messages that a mailbox stores: all but transient ones, which are worthless later.

    This does not depend on which devices are connected.
    """
    return [message for message in messages if not records[message[0]].is_transient]


def plan(
    records: Sequence[Record],
    messages: Sequence[Message],
    here: Container[str],
    holders: Mapping[str, Sequence[str]],
    *,
    has_mailbox: bool,
) -> Plan:
    """Decide where each message goes. With a mailbox, decide once they are stored: a device that connects in the
    meantime may have looked into its box too early to find them.

    :param messages: from :func:`messages_of`
    :param here: the devices that are connected to this server
    :param holders: by device, the other servers that hold it; ignored for devices that are here
    """
    # The cases of a message, in order; a device that is not in ``holders`` is held by no other server:
    #   1. its device is here                    -> local, whatever others say: this server's own table is the latest
    #   2. other servers hold it                 -> forward, to each of them: more than one only if a device may have
    #                                               several connections
    #   3. no server holds it                    -> unheld
    # And in addition, in each of these cases:
    #   a. there is a mailbox, and it is not transient -> store
    store = tuple(to_store(records, messages)) if has_mailbox else ()
    local, unheld = [], []
    forward: dict[str, list[Message]] = {}
    for message in messages:
        device_id = message[1]
        if device_id in here:
            local.append(message)
        elif not (servers := holders.get(device_id)):
            unheld.append(message)
        else:
            for server in dict.fromkeys(servers):
                forward.setdefault(server, []).append(message)
    if not forward:
        return Plan(tuple(local), store=store, unheld=tuple(unheld))
    by_server = {server: tuple(of_server) for server, of_server in forward.items()}
    return Plan(tuple(local), MappingProxyType(by_server), store, tuple(unheld))


def stale_messages(
    records: Sequence[Record], messages: Sequence[Message], numbers: Mapping[Message, int | None]
) -> frozenset[Message]:
    """The transient messages that precede a message which was stored earlier. The batch is being read again, and the
    device already has newer messages.

    :param numbers: of the stored messages, in their devices' boxes; None: stored earlier
    """
    stale, known_later = set(), set()
    for message in reversed(messages):
        at, device_id = message
        if records[at].is_transient:
            if device_id in known_later:
                stale.add(message)
        elif numbers[message] is None:
            known_later.add(device_id)
    return frozenset(stale)
