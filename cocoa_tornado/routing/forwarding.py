"""Messages to and from the other servers of a deployment, through the relay. IOLoop thread only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from ..brokers.port import Batch
from ..counters import Counters, count
from ..mailboxes.port import FanOutStep
from ..presence.port import Presence
from ..relay.messages import Forward, ForwardedMessage, RelayMessage, WakeUp, WakeUpMembers
from ..relay.port import Fate, Relay
from ..rules.records import Record
from ..rules.terms import terms_of
from ..rules.trace_memory import Outcome, TraceMemory
from .address import Address, Devices
from .forwards import MOST, NO_PLACES, Place, Portion, forwards_of
from .local import LocalDelivery
from .looking import LookingAgain
from .plan import Message, Part
from .receipt import Receipt


class Forwarding:
    """Forwards messages to the servers that hold their devices, and takes theirs.

    Each forward is a leg of its batch, which ends when the relay reports the message's fate. Messages that were not
    accepted are dropped and counted: the server has ended or is unreachable. With a mailbox only transient messages are
    lost: if wake-ups for this server were lost, all of its devices look into their boxes. Without one, the holders are
    looked up once more first, because servers have new epochs after Redis was restarted. Even if the message was sent
    before, no device gets it twice: see ``rules/taken.py``.

    :param looking: None without a mailbox
    """

    def __init__(
        self,
        relay: Relay,
        presence: Presence,
        local: LocalDelivery,
        counters: Counters,
        looking: LookingAgain | None,
        memory: TraceMemory | None = None,
    ) -> None:
        self._memory = memory
        self._relay, self._presence, self._local, self._counters = relay, presence, local, counters
        if looking is not None:
            relay.watch_losses(looking.start)
        relay.handle(Forward, self._on_forward)
        relay.handle(WakeUp, self._on_wake_up)
        relay.handle(WakeUpMembers, self._on_wake_up_members)

    @property
    def me(self) -> str:
        """This server's name in presence."""
        return self._relay.server

    def forward(
        self,
        batch: Batch,
        server: str,
        messages: Sequence[Part],
        receipt: Receipt,
        again: Callable[[Sequence[Message]], None] | None = None,
        places: Mapping[Part, Place] = NO_PLACES,
    ) -> None:
        """Send messages of a batch to the server that holds their devices.

        :param again: is given the messages that the other server does not have, or may not have, instead of dropping
            them
        :param places: of transient messages among the stored ones
        """
        ended, left = receipt.leg(), len(messages)
        try:
            for portion in forwards_of(batch.records, batch.origins(), messages, self._local.terms_of, places):
                left -= len(portion.parts)
                self._forward(batch.records, server, portion, receipt.leg(), again)
        except Exception:
            self._local.failed_elsewhere(left, server)
        finally:
            ended()

    def _forward(
        self,
        records: Sequence[Record],
        server: str,
        portion: Portion,
        ended: Callable[[], None],
        again: Callable[[Sequence[Message]], None] | None,
    ) -> None:
        messages = portion.parts

        def then(fate: Fate | None) -> None:
            rest = messages
            try:
                if again is not None and fate in (Fate.NO_SERVER, Fate.LOST, Fate.CLOSED):
                    again([(at, device_id) for at, device_id in messages if device_id is not None])
                    rest = [message for message in messages if message[1] is None]
                self._note_fate(fate, rest, records)
            finally:
                ended()

        self._send(server, portion.forward, then)

    @property
    def finds_holders(self) -> bool:
        """Whether :meth:`send_to_holders` works."""
        return self._relay.finds_holders

    def send_to_holders(
        self, batch: Batch, stamp: str, messages: Sequence[Message], then: Callable[[Sequence[Fate] | None], None]
    ) -> None:
        """Send messages of a batch to the servers that the relay finds to hold their devices. The batch has no record
        for several devices.

        :param then: is given their fates, in a later turn of the loop; None: an internal error, which costs these
            messages
        """
        try:
            records, origins, terms_of = batch.records, batch.origins(), self._local.terms_of
            made = [
                ForwardedMessage(device_id, records[at][1], records[at][2], *origins[at], terms_of(records[at]))
                for at, device_id in messages
            ]
            sent = self._relay.send_to_holders(stamp, made)
        except Exception:
            self._local.failed_elsewhere(len(messages))
            asyncio.get_running_loop().call_soon(then, None)
            return
        sent.add_done_callback(lambda sent: self._note_fates(batch.records, messages, sent.result(), then))

    def _note_fates(
        self,
        records: Sequence[Record],
        messages: Sequence[Message],
        fates: Sequence[Fate],
        then: Callable[[Sequence[Fate] | None], None],
    ) -> None:
        overflows = fates.count(Fate.OVERFLOW)
        if overflows:
            count(self._counters.dropped, "overflow", overflows)
            lost = [message for message, fate in zip(messages, fates, strict=True) if fate is Fate.OVERFLOW]
            self._note_lost(lost, records, is_overflow=True)
        then(fates)

    def forward_step(self, server: str, step: FanOutStep, device_ids: Sequence[str]) -> None:
        """Send the transient message of a fan-out to the server that holds these devices."""
        terms = terms_of("", step.options, step.timestamp_ms, 0)
        given = step.numbers or {}
        places = {device_id: given[device_id] for device_id in device_ids if device_id in given}
        address = Devices(tuple(device_ids))
        message = ForwardedMessage(address, step.payload, step.timestamp_ms, "", 0, terms, None, places)
        parts = [(0, device_id) for device_id in device_ids]
        records = [Record(address, step.payload, step.timestamp_ms)]
        self._send(server, Forward((message,)), lambda fate: self._note_fate(fate, parts, records))

    def wake_up(self, server: str, device_ids: Iterable[str], receipt: Receipt | None = None) -> None:
        """Notify the server that holds these devices of new messages in their boxes. A lost notification only delays.

        :param receipt: of the batch that it is a leg of, if any
        """
        waking = tuple(dict.fromkeys(device_ids))
        for start in range(0, len(waking), MOST):
            ended = _nothing if receipt is None else receipt.leg()
            self._send(server, WakeUp(waking[start : start + MOST]), partial(_end, ended))

    def wake_up_members(self, address: Address) -> None:
        """Notify all other servers of new messages in boxes of devices that an address stands for."""
        for server in self._presence.others():
            self._send(server, WakeUpMembers(address), lambda _: None)

    def _send(self, server: str, message: RelayMessage, then: Callable[[Fate | None], None]) -> None:
        """:param then: is given the message's fate; None: an internal error, which costs only this message"""
        try:
            sent = self._relay.send(server, message)
        except Exception:
            self._local.failed_elsewhere(message.count, server)
            then(None)
            return
        if sent.done():
            then(sent.result())
        else:
            sent.add_done_callback(lambda sent: then(sent.result()))

    def _note_fate(self, fate: Fate | None, messages: Sequence[Part], records: Sequence[Record]) -> None:
        """:param fate: None: they are counted already"""
        if fate is Fate.NO_SERVER:
            for at, device_id in messages:
                if device_id is not None:
                    self._local.not_connected(device_id, records[at].payload, records[at].timestamp_ms)
        elif fate not in (None, Fate.ACCEPTED) and messages:
            count(self._counters.dropped, "overflow" if fate is Fate.OVERFLOW else "lost", len(messages))
            self._note_lost(messages, records, is_overflow=fate is Fate.OVERFLOW)

    def _note_lost(self, messages: Iterable[Part], records: Sequence[Record], *, is_overflow: bool) -> None:
        if self._memory is not None:
            for at, device_id in messages:
                if device_id is not None:  # otherwise other servers may have sent it to theirs
                    outcome: Outcome = "overflow" if is_overflow else "fault"
                    self._memory.note(records[at].payload, records[at].timestamp_ms, device_id, outcome)

    def _on_forward(self, sender: str, forward: Forward) -> None:
        if self._memory is not None:
            batch = self._memory.remember_forward(forward.messages, sender)
            batch.routed_at_s = batch.at_s
        for message in forward.messages:
            address, payload, source = message.address, message.payload, message.source
            place = message.after, message.places
            self._local.take(address, payload, message.timestamp_ms, message.terms, source, message.offset, *place)

    def _on_wake_up(self, sender: str, wake_up: WakeUp) -> None:
        for device_id in wake_up.device_ids:
            self._local.wake(device_id)

    def _on_wake_up_members(self, sender: str, wake_up: WakeUpMembers) -> None:
        self._local.wake_members(wake_up.address)


def _nothing() -> None:
    pass


def _end(ended: Callable[[], None], _: Fate | None) -> None:
    ended()
