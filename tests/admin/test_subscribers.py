"""The events of one server for the operators of another: in bounded batches, for as long as they are wanted."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest

from cocoa_tornado.admin.subscribers import (
    BATCH_BYTES,
    EVENTS,
    MAX_EVENTS,
    EventBatch,
    Subscribers,
    Subscription,
    WatchRow,
)
from cocoa_tornado.relay.messages import Query, RelayMessage
from cocoa_tornado.relay.port import Fate, RelayLimits
from cocoa_tornado.rules.identity import DeviceIdentity
from cocoa_tornado.rules.live_events import EVENT_BYTES, LiveEvent, LiveEvents, ToWrite
from testing.waiting import eventually

from .test_servers import Stand, run, some_turns

DOLL = DeviceIdentity("doll", 99, "1", (), 0.0)


class Source:
    """The server b, whose events the server a has subscribed to."""

    def __init__(self) -> None:
        self.stand = Stand("a", "b")
        self.live = LiveEvents(lambda: "b", lambda: 1.0)
        self.lost = 0
        self.subscribers = Subscribers(self.stand.servers["b"], self.live, self._count)
        self.batches: list[EventBatch] = []
        self.stand.servers["a"].listen(EVENTS, self.batches.append)

    def _count(self, lost: int) -> None:
        self.lost += lost

    async def subscribe(self, *rows: WatchRow, server: str = "a") -> None:
        await self.subscribers.answer(Subscription(server, rows or (WatchRow(number=1, with_text=True),)))

    def write(self, text: bytes = b"{}") -> None:
        self.live.written(DOLL, [ToWrite(text, 0)], 1.0)

    @property
    def events(self) -> list[LiveEvent]:
        return [event for batch in self.batches for event, _ in batch.events]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoa_tornado.admin.subscribers.PERIOD_S", 0.0)


def test_events_arrive_in_order_in_batches_of_a_bounded_size() -> None:
    async def test() -> None:
        source = Source()
        await source.subscribe()
        for number in range(500):
            source.write(b'{"id":"%d"}' % number)
        await eventually(lambda: len(source.events) == 500)
        ids = [event.message.id for event in source.events if event.message is not None]
        assert ids == [str(number) for number in range(500)]
        assert max(len(batch.events) for batch in source.batches) <= BATCH_BYTES // EVENT_BYTES
        source.subscribers.close()

    run(test)


def test_what_a_server_has_too_many_of_is_counted_and_told() -> None:
    async def test() -> None:
        source = Source()
        await source.subscribe()
        for _ in range(MAX_EVENTS + 7):
            source.write()
        await eventually(lambda: len(source.events) == MAX_EVENTS + 1)
        assert (source.events[-1].event, source.events[-1].lost, source.lost) == ("lost", 7, 7)
        source.subscribers.close()

    run(test)


def test_what_the_relay_does_not_take_is_told_once_it_takes_something_again() -> None:
    async def test() -> None:
        source = Source()
        await source.subscribe()
        source.stand.exchange.limits = RelayLimits(max_messages=0)
        source.write()
        await eventually(lambda: source.lost == 1)
        await some_turns()
        source.stand.exchange.limits = RelayLimits()
        await eventually(lambda: len(source.events) == 1)
        assert (source.events[0].event, source.events[0].lost, source.lost) == ("lost", 1, 1)
        source.subscribers.close()

    run(test)


def test_the_next_batch_waits_until_the_relay_has_taken_the_last() -> None:
    """An unavailable relay holds one batch, for any number of events."""

    async def test() -> None:
        source = Source()
        await source.subscribe()
        relay, sent = source.stand.relays["b"], list[RelayMessage]()

        def hold(server: str, message: RelayMessage) -> asyncio.Future[object]:
            sent.append(message)
            return asyncio.get_running_loop().create_future()

        relay.send = hold  # type: ignore[assignment]  # a method, for this test
        for _ in range(3 * MAX_EVENTS):
            source.write()
            await asyncio.sleep(0)
        (message,) = sent
        assert isinstance(message, Query)
        assert source.lost >= MAX_EVENTS
        source.subscribers.close()

    run(test)


def test_a_subscription_that_is_not_renewed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoa_tornado.admin.subscribers.LEASE_S", 0.0)

    async def test() -> None:
        source = Source()
        await source.subscribe()
        assert source.live.sinks
        await eventually(lambda: not source.live.sinks)
        assert repr(source.subscribers) == "<Subscribers 0>"

    run(test)


def test_a_subscription_replaces_the_one_before() -> None:
    async def test() -> None:
        source = Source()
        await source.subscribe(WatchRow(number=1), WatchRow(number=2, device="bear"))
        await source.subscribe(WatchRow(number=3, user="99"), WatchRow(number=4, user='"99"'))
        source.write()
        await eventually(lambda: bool(source.batches))
        ((_, numbers),) = source.batches[0].events
        assert list(numbers) == [3]
        source.subscribers.close()

    run(test)


def test_a_server_that_has_ended_is_sent_nothing_more() -> None:
    async def test() -> None:
        source = Source()
        await source.subscribe(server="gone")
        source.write()
        await eventually(lambda: not source.live.sinks)

    run(test)


def test_what_an_earlier_subscription_could_not_send_does_not_end_the_next_one() -> None:
    async def test() -> None:
        source = Source()
        await source.subscribe()
        relay, fate = source.stand.relays["b"], asyncio.get_running_loop().create_future()
        sent = Mock(return_value=fate)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(relay, "send", sent)
            source.write()
            await eventually(lambda: sent.called)
        source.subscribers.close()
        await source.subscribe()
        fate.set_result(Fate.NO_SERVER)
        await some_turns()
        source.write()
        await eventually(lambda: len(source.events) == 1)
        source.subscribers.close()

    run(test)


def test_a_server_does_not_subscribe_to_itself() -> None:
    async def test() -> None:
        source = Source()
        await source.subscribe(server="b")
        assert source.live.sinks == ()

    run(test)
