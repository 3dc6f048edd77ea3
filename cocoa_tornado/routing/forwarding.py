"""Messages to and from the other servers of a deployment, through the relay. IOLoop thread only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..brokers.port import Batch
from ..counters import Counters, count
from ..relay.messages import Forward, ForwardedMessage, RelayMessage, WakeUp
from ..relay.port import Fate, Relay
from .local import LocalDelivery
from .plan import Message
from .receipt import Receipt


class Forwarding:
    """Forwards messages to the servers that hold their devices, and takes theirs.

    Each forward is a leg of its batch, which ends when the relay reports the message's fate. Messages that were not
    accepted are dropped and counted: the server has ended or is unreachable. With a mailbox that costs interims only.
    """

    def __init__(self, relay: Relay, local: LocalDelivery, counters: Counters) -> None:
        self._relay, self._local, self._counters = relay, local, counters
        relay.handle(Forward, self._on_forward)
        relay.handle(WakeUp, self._on_wake_up)

    @property
    def me(self) -> str:
        """This server's name in presence."""
        return self._relay.server

    def forward(self, batch: Batch, server: str, messages: Sequence[Message], receipt: Receipt) -> None:
        """Send messages of a batch to the server that holds their devices."""
        records, origins = batch.records, batch.origins()
        forwarded = []
        for at, device_id in messages:
            record = records[at]
            terms = self._local.terms_of(record)
            forwarded.append(ForwardedMessage(device_id, record.payload, record.timestamp_ms, *origins[at], terms))
        ended = receipt.leg()

        def then(fate: Fate) -> None:
            self._note_fate(fate, messages)
            ended()

        self._send(server, Forward(tuple(forwarded)), then)

    def wake_up(self, server: str, device_ids: Iterable[str], receipt: Receipt | None = None) -> None:
        """Notify the server that holds these devices of new messages in their boxes. A lost notification only delays.

        :param receipt: of the batch that it is a leg of, if any
        """
        ended = _nothing if receipt is None else receipt.leg()
        self._send(server, WakeUp(tuple(dict.fromkeys(device_ids))), lambda _: ended())

    def _send(self, server: str, message: RelayMessage, then: Callable[[Fate], None]) -> None:
        sent = self._relay.send(server, message)
        if sent.done():
            then(sent.result())
        else:
            sent.add_done_callback(lambda sent: then(sent.result()))

    def _note_fate(self, fate: Fate, messages: Sequence[Message]) -> None:
        if fate is Fate.NO_SERVER:
            for _, device_id in messages:
                self._local.not_connected(device_id)
        elif fate is not Fate.ACCEPTED:
            count(self._counters.dropped, "overflow" if fate is Fate.OVERFLOW else "lost", len(messages))

    def _on_forward(self, sender: str, forward: Forward) -> None:
        for message in forward.messages:
            self._local.take(message.device_id, message.payload, message.timestamp_ms, message.terms)

    def _on_wake_up(self, sender: str, wake_up: WakeUp) -> None:
        for device_id in wake_up.device_ids:
            self._local.wake(device_id)


def _nothing() -> None:
    pass
