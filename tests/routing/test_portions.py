"""A batch with many fan-outs is cut, and nothing of it is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.routing.address import Address, Everyone, Group, User
from cocoa_tornado.routing.portions import FAN_OUTS_TOGETHER, portions
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.records import Record

ADDRESSES: list[Address] = ["doll", User(1), Group("red"), Group("red"), Group("red"), Everyone()]


def batch_of(addresses: list[Address], done: list[int], options: Options | None = None) -> Batch:
    records = [Record(address, b"%d" % at, at, options=options) for at, address in enumerate(addresses)]
    first = len(records) // 3
    sources = [("results/0", first), ("results/1", len(records) - first)]
    return Batch(records, lambda: done.append(1), range(100, 100 + len(records)), sources)


@given(st.lists(st.sampled_from(ADDRESSES), max_size=60))
def test_the_portions_are_the_batch_in_its_order_each_with_few_fan_outs(addresses: list[Address]) -> None:
    done: list[int] = []
    batch = batch_of(addresses, done)
    found = portions(batch)
    assert [record for part in found for record in part.records] == batch.records
    assert [origin for part in found for origin in part.origins()] == batch.origins()
    large = [sum(isinstance(record.address, Group | Everyone) for record in part.records) for part in found]
    assert large[:-1] == [FAN_OUTS_TOGETHER] * (len(found) - 1)
    assert large[-1] <= FAN_OUTS_TOGETHER
    for part in found:
        assert not done
        part.done()
    assert done == [1]


def test_a_batch_with_few_fan_outs_and_one_whose_fan_outs_are_not_stored_stay_whole() -> None:
    few = batch_of([Group("red")] * FAN_OUTS_TOGETHER, [])
    assert portions(few) == [few]
    transient = batch_of([Group("red")] * 100, [], Options(ttl_s=0))
    assert portions(transient) == [transient]
    assert len(portions(batch_of([Group("red")] * 100, [], Options(ttl_s=0, id="x")))) > 1
