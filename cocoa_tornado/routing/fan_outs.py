"""Sends what the mailbox has stored of fan-outs: messages for a user, a group or everyone. IOLoop thread only."""

from __future__ import annotations

from collections.abc import Sequence

from ..counters import Counters, count
from ..mailboxes.port import FanOutStep
from ..rules.audiences import address_of
from ..rules.trace_memory import TraceMemory
from .address import Address
from .forwarding import Forwarding
from .in_flight import Holders, InFlight
from .local import LocalDelivery
from .neighbors import Neighbors
from .plan import plan


class FanOutDelivery:
    """The mailbox finds the recipients of a fan-out in steps, perhaps long after the batch of the record is done.

    :param memory: remembers what happened to each message; None: nothing does
    """

    def __init__(
        self,
        local: LocalDelivery,
        forwarding: Forwarding,
        neighbors: Neighbors,
        counters: Counters,
        memory: TraceMemory | None,
    ) -> None:
        self._local, self._forwarding, self._neighbors = local, forwarding, neighbors
        self._counters, self._memory = counters, memory

    def send_steps(self, flight: InFlight, at: int, *, is_recorded: bool) -> None:
        """Send the steps that were stored with the batch.

        :param is_recorded: with the batch: all further steps will be reported. False: it was recorded earlier
        """
        steps, record = flight.steps.get(at), flight.batch.records[at]
        if steps is None:
            if not (record.is_transient or is_recorded):
                self.wake_members(record.address)
        else:
            for step in steps:
                self.send_step(step)

    def send_step(self, step: FanOutStep) -> None:
        """Send the messages of a step to the devices that are here, and notify the servers of the others. A transient
        message is forwarded to them instead."""
        if self._memory is not None and step.numbers is not None:
            numbers = None if step.is_transient else step.numbers
            self._memory.note_recipients(step.payload, step.timestamp_ms, tuple(step.numbers), numbers)
        if step.is_last and not step.recipients:
            self._local.no_recipient(1)
        if step.numbers is None:
            if not step.is_transient:
                self.wake_members(address_of(step.audience, step.excluded))
            return
        away = self._local.send_step(step, step.numbers)
        asked = list(step.numbers) if self._neighbors.is_spread() else away
        holders = self._neighbors.ask(asked)
        if holders is None:
            return
        if holders.done():
            self._send_elsewhere(step, asked, away, holders)
        else:
            holders.add_done_callback(lambda holders: self._send_elsewhere(step, asked, away, holders))

    def drop_step(self, step: FanOutStep) -> None:
        """There is no room to keep these transient messages until those before them are sent."""
        device_ids = tuple(step.numbers or ())
        count(self._counters.dropped, "overflow", len(device_ids))
        if self._memory is not None:
            self._memory.note_all(step.payload, step.timestamp_ms, device_ids, "overflow")

    def _send_elsewhere(self, step: FanOutStep, asked: Sequence[str], away: Sequence[str], holders: Holders) -> None:
        """
        :param asked: the devices whose holders are known
        :param away: those that were not here
        """
        routes = plan([(0, device_id) for device_id in asked], (), self._neighbors.elsewhere(holders))
        if not step.is_transient:
            unheld = routes.unheld
            self._counters.kept += len(unheld if asked is away else {each for _, each in unheld}.intersection(away))
        elif self._memory is not None and (lost := {each for _, each in routes.unheld}.intersection(away)):
            self._memory.note_all(step.payload, step.timestamp_ms, tuple(lost), "not_connected")
        for server, part in routes.forward.items():
            device_ids = [device_id for _, device_id in part if device_id is not None]
            if step.is_transient:
                if self._memory is not None:
                    self._memory.note_forwarded(step.payload, step.timestamp_ms, device_ids, server)
                self._forwarding.forward_step(server, step, device_ids)
            else:
                self._forwarding.wake_up(server, device_ids)

    def wake_members(self, address: Address) -> None:
        """Messages may have been stored for these devices without a number that is known here."""
        self._local.wake_members(address)
        self._forwarding.wake_up_members(address)
