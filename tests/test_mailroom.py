"""What of a batch is told again, once the gateway has read it a second time."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.hub import Hub
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailroom import Mailroom, _stale_hypotheses
from cocoa_tornado.metrics import Counters
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.records import Delivery

from .clients import connect


def final(device_id: str) -> Delivery:
    return Delivery(device_id, b"{}", 0)


def hypothesis(device_id: str) -> Delivery:
    return Delivery(device_id, b"{}", 0, interim_of="s")


def test_a_hypothesis_is_stale_if_a_message_behind_it_had_been_stored_before() -> None:
    batch = [hypothesis("a"), hypothesis("b"), final("a"), hypothesis("a"), final("b"), hypothesis("b")]
    assert _stale_hypotheses(batch, [None, 7]) == {0}
    assert _stale_hypotheses(batch, [None, None]) == {0, 1}
    assert _stale_hypotheses(batch, [6, 7]) == set()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["hypothesis", "new", "known"])), max_size=12))
def test_no_message_and_no_newer_hypothesis_is_ever_stale(steps: list[tuple[str, str]]) -> None:
    batch = [hypothesis(device) if kind == "hypothesis" else final(device) for device, kind in steps]
    stored = [1 if kind == "new" else None for _, kind in steps if kind != "hypothesis"]
    stale = _stale_hypotheses(batch, stored)
    for at, (device, kind) in enumerate(steps):
        is_known_later = (device, "known") in steps[at + 1 :]
        assert (at in stale) == (kind == "hypothesis" and is_known_later)


@pytest.mark.gen_test
async def test_a_hypothesis_that_is_read_again_is_not_sent_again_once_its_message_is_stored() -> None:
    hub, mailbox = Hub(), MemoryMailbox(BoxLimits())
    await mailbox.start()
    client = connect(hub, "a")
    mailroom = Mailroom(hub, mailbox, Counters(), time.time)
    deliveries = [Delivery("a", b'{"n":0}', 0, interim_of="s"), Delivery("a", b'{"n":1}', 0)]
    for _ in range(2):
        done = asyncio.Event()
        mailroom(Batch(deliveries, done.set, [0, 1], [("results/0", 2)]))
        await asyncio.wait_for(done.wait(), 30.0)
    assert client.sent[0] == b'{"n":0}'
    assert len(client.sent) == 2
    await mailbox.close(1.0)
