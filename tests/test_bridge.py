"""The bridge: batches to devices, in order, each batch reported done once."""

from __future__ import annotations

import logging

import pytest

from cocoa_tornado.bridge import Bridge
from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.hub import Hub
from cocoa_tornado.metrics import Counters
from cocoa_tornado.rules.records import Delivery

from .clients import FakeClient, connect


async def make() -> tuple[Bridge, FakeClient, Counters]:
    hub, counters = Hub(), Counters()
    client = connect(hub, "doll")
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


@pytest.mark.gen_test
@pytest.mark.logs("cocoa.bridge", "message could not be routed")
async def test_a_fault_costs_its_own_message_and_the_batch_is_done_all_the_same() -> None:
    bridge, client, counters = await make()
    done: list[int] = []
    # A payload that is no bytes stands for any mistake of ours.
    broken = Delivery("doll", None, 0)  # type: ignore[arg-type]  # on purpose
    bridge(Batch([Delivery("doll", b"0", 0), broken, Delivery("doll", b"1", 0)], lambda: done.append(1)))
    assert [frame[2:] for frame in client.sent] == [b"0", b"1"]
    assert done == [1]
    assert (counters.routed, counters.dropped) == (2, {"fault": 1})
