"""Where the messages of a batch go: the routing decision. Pure, and total: every message has a place in the plan.

A *message* is one record for one device: a record that addresses many devices is many messages. It points at its record
by the record's place in the batch, so it costs no copy, and two records that are alike stay apart.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from ..rules.records import Record
from .address import Directory, recipients

Message: TypeAlias = tuple[int, str]
"""The place of its record in the batch, and its device."""


class Plan(NamedTuple):
    """What is to be done with each message. Everywhere the messages stand in the order of their records.

    :ivar local: for devices that are connected to this server
    :ivar forward: for devices that other servers hold, by server
    :ivar store: for the mailbox, before anything else is done with them. These are in one of the others too
    :ivar nobody: for devices that no server holds
    """

    local: Sequence[Message] = ()
    forward: Mapping[str, Sequence[Message]] = MappingProxyType({})
    store: Sequence[Message] = ()
    nobody: Sequence[Message] = ()


def away_of(records: Sequence[Record], here: Container[str]) -> list[str] | None:
    """The devices of these records that are not connected to this server, one for each record of theirs; None where a
    record addresses anything but one device.

    Nearly every batch is only for single devices that are here, and needs no :func:`plan`: this finds out at a fifth of
    the price.
    """
    # An address of several devices is no key of a table of devices, so it is never in ``here``.
    away = [record[0] for record in records if record[0] not in here]
    if away and not all(type(address) is str for address in away):
        return None
    return away  # type: ignore[return-value]  # each is a str, as has just been seen


def messages_of(records: Sequence[Record], directory: Directory) -> list[Message]:
    """Each record once for each device that it addresses, in the order of the records.

    A record that addresses nobody, such as one for a group without members, is no message.
    """
    messages: list[Message] = []
    for at, record in enumerate(records):
        address = record[0]
        if type(address) is str:  # nearly all of them, and nothing compares faster
            messages.append((at, address))
        else:
            messages.extend([(at, device_id) for device_id in recipients(address, directory)])
    return messages


def to_store(records: Sequence[Record], messages: Iterable[Message]) -> list[Message]:
    """What a mailbox keeps of these messages: all but hypotheses, which are worth nothing later.

    It depends on no device being connected, so it is known before it is known where the messages go.
    """
    return [message for message in messages if not records[message[0]].interim_of]


def plan(
    records: Sequence[Record],
    messages: Sequence[Message],
    here: Container[str],
    holders: Mapping[str, Sequence[str]],
    *,
    has_mailbox: bool,
) -> Plan:
    """Decide where each message goes. With a mailbox this is decided once they are stored: devices come and go
    meanwhile, and whoever has come looked into its box perhaps too early to find them.

    :param messages: what :func:`messages_of` has made of the records
    :param here: the devices that are connected to this server
    :param holders: by device, the other servers that hold it; those of devices that are here are not looked at
    """
    # The cases of a message, in their order; a device that is not in ``holders`` is held by no other server:
    #   1. its device is here                    -> local, whatever others say: this server's own table is the latest
    #   2. other servers hold it                 -> forward, to each of them: more than one only where a device may have
    #                                               several connections
    #   3. nobody holds it                       -> nobody
    # And besides, in each of these cases:
    #   a. there is a mailbox, and it is no hypothesis -> store
    store = tuple(to_store(records, messages)) if has_mailbox else ()
    local, nobody = [], []
    forward: dict[str, list[Message]] = {}
    for message in messages:
        device_id = message[1]
        if device_id in here:
            local.append(message)
        elif not (servers := holders.get(device_id)):
            nobody.append(message)
        else:
            for server in dict.fromkeys(servers):
                forward.setdefault(server, []).append(message)
    if not forward:
        return Plan(tuple(local), store=store, nobody=tuple(nobody))
    by_server = {server: tuple(of_server) for server, of_server in forward.items()}
    return Plan(tuple(local), MappingProxyType(by_server), store, tuple(nobody))


def stale_hypotheses(
    records: Sequence[Record], messages: Sequence[Message], numbers: Mapping[Message, int | None]
) -> frozenset[Message]:
    """The hypotheses that a message of the same device comes after which had been stored before: they are read a second
    time, and their device knows better by now.

    :param numbers: of what is stored, in its device's box; None: stored before
    """
    stale, known_later = set(), set()
    for message in reversed(messages):
        at, device_id = message
        if records[at].interim_of:
            if device_id in known_later:
                stale.add(message)
        elif numbers[message] is None:
            known_later.add(device_id)
    return frozenset(stale)
