"""A batch with many fan-outs, or of many messages, is cut, and nothing of it is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.hub import Hub
from cocoa_tornado.routing import portions as portions_module
from cocoa_tornado.routing.address import Address, Devices, Everyone, Group, User, most_recipients, recipients
from cocoa_tornado.routing.portions import FAN_OUTS_TOGETHER, MESSAGES_TOGETHER, portions
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.records import Record

from ..clients import connect

ADDRESSES: list[Address] = ["doll", User(1), Group("red"), Group("red"), Group("red"), Everyone()]
TRANSIENT = Options(ttl_s=0)


def batch_of(addresses: list[Address], done: list[int], options: Options | None = None) -> Batch:
    records = [Record(address, b"%d" % at, at, options=options) for at, address in enumerate(addresses)]
    first = len(records) // 3
    sources = [("results/0", first), ("results/1", len(records) - first)]
    return Batch(records, lambda: done.append(1), range(100, 100 + len(records)), sources)


@given(st.lists(st.sampled_from(ADDRESSES), max_size=60))
def test_the_portions_are_the_batch_in_its_order_each_with_few_fan_outs(addresses: list[Address]) -> None:
    done: list[int] = []
    batch = batch_of(addresses, done)
    found = portions(batch, Hub(), has_mailbox=True)
    assert [record for part in found for record in part.records] == batch.records
    assert [origin for part in found for origin in part.origins()] == batch.origins()
    large = [sum(isinstance(record.address, Group | Everyone) for record in part.records) for part in found]
    assert large[:-1] == [FAN_OUTS_TOGETHER] * (len(found) - 1)
    assert large[-1] <= FAN_OUTS_TOGETHER
    for part in found:
        assert not done
        part.done()
    assert done == [1]


@given(st.lists(st.sampled_from([*ADDRESSES, Devices(("a", "b", "a", "c"))]), max_size=60))
def test_a_portion_of_more_messages_than_go_together_has_a_single_record(addresses: list[Address]) -> None:
    hub, done = Hub(), list[int]()
    for number in range(5):
        connect(hub, str(number), user_id=1, groups=["red"] * (number < 3))
    batch = batch_of(addresses, done, TRANSIENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portions_module, "MESSAGES_TOGETHER", 6)
        found = portions(batch, hub, has_mailbox=True)
    assert [record for part in found for record in part.records] == batch.records
    assert [origin for part in found for origin in part.origins()] == batch.origins()
    for part in found:
        messages = sum(len(recipients(record.address, hub)) for record in part.records)
        assert messages <= 6 or len(part.records) == 1 or all(isinstance(r.address, str) for r in batch.records)
        part.done()
    assert done == [1]


@given(st.sampled_from([*ADDRESSES, Devices(("doll", "doll")), Everyone(frozenset({"doll"}))]))
def test_no_address_has_more_recipients_than_are_reckoned_with(address: Address) -> None:
    hub = Hub()
    connect(hub, "doll", user_id=1, groups=["red"])
    connect(hub, "other", user_id=1)
    assert len(recipients(address, hub)) <= most_recipients(address, hub) <= 2


def test_a_batch_with_few_fan_outs_and_few_messages_stays_whole() -> None:
    hub = Hub()
    connect(hub, "doll", groups=["red"])
    few = batch_of([Group("red")] * FAN_OUTS_TOGETHER, [])
    assert portions(few, hub, has_mailbox=True) == [few]
    transient = batch_of([Group("red")] * 100, [], TRANSIENT)
    assert portions(transient, hub, has_mailbox=True) == [transient]
    assert len(portions(batch_of([Group("red")] * 100, [], Options(ttl_s=0, id="x")), hub, has_mailbox=True)) > 1
    assert len(portions(batch_of([Group("red")] * 100, []), hub)) == 1
    single = batch_of(["doll"] * (MESSAGES_TOGETHER + 1), [])
    assert portions(single, hub, has_mailbox=True) == [single]
