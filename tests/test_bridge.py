"""The bridge: batches to devices, in order, each batch reported done once."""

from __future__ import annotations

import logging

import pytest

from cocoa_tornado.bridge import Bridge
from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.hub import Hub
from cocoa_tornado.metrics import Counters
from cocoa_tornado.rules.records import Delivery
from cocoa_tornado.rules.slots import SlotLimits

from .test_hub import FakeClient


async def make() -> tuple[Bridge, FakeClient, Counters]:
    hub, counters = Hub(SlotLimits(), lambda: 0.0), Counters()
    client = FakeClient(hub, await hub.reserve("doll"))
    hub.register(client)
    return Bridge(hub, counters, lambda: 0.0), client, counters


@pytest.mark.gen_test
async def test_a_batch_is_routed_in_order_and_reported_done_once() -> None:
    bridge, client, counters = await make()
    done: list[int] = []
    deliveries = [Delivery("doll", str(number).encode(), 0) for number in range(5)]
    bridge(Batch(deliveries, lambda: done.append(1)))
    assert [frame[2:] for frame in client.sent] == [b"0", b"1", b"2", b"3", b"4"]
    assert done == [1]
    assert counters.routed == 5


@pytest.mark.gen_test
async def test_unknown_devices_are_counted_each_and_logged_within_bounds(caplog: pytest.LogCaptureFixture) -> None:
    bridge, client, counters = await make()
    with caplog.at_level(logging.INFO, "cocoa.bridge"):
        bridge(Batch([Delivery(f"stranger-{number}", b"x", 0) for number in range(1000)]))
    assert client.sent == []
    assert counters.unknown_device == 1000
    assert len(caplog.records) == 50
