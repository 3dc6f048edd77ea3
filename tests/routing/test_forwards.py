"""How what goes to another server is cut into messages of the relay (cocoa_tornado.routing.forwards)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.relay.messages import size_of
from cocoa_tornado.routing import forwards
from cocoa_tornado.routing.address import Address, Devices, Group, recipients
from cocoa_tornado.routing.forwards import Portion, forwards_of
from cocoa_tornado.routing.plan import Part
from cocoa_tornado.rules.records import Record

from .anyone import Table

MOST = 3
MOST_BYTES = 400


def cut(records: list[Record], parts: list[Part]) -> list[Portion]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forwards, "MOST", MOST)
        patch.setattr(forwards, "MOST_BYTES", MOST_BYTES)
        origins = [("results/0", at) for at in range(len(records))]
        return list(forwards_of(records, origins, parts, lambda record: None))


def record(address: Address = "doll", length: int = 2) -> Record:
    return Record(address, b"x" * length, 7)


devices = st.sampled_from(["a", "b", "c", "d", "e"])
parts_of_one = st.one_of(st.just([None]), st.lists(devices, max_size=8, unique=True))


@given(st.lists(st.tuples(parts_of_one, st.sampled_from([0, 100, 300, 600])), max_size=8))
def test_every_part_goes_once_in_order_and_no_message_is_larger_than_it_must_be(
    drawn: list[tuple[list[str | None], int]],
) -> None:
    records = [record(Group("red"), length) for _, length in drawn]
    parts: list[Part] = [(at, device_id) for at, (device_ids, _) in enumerate(drawn) for device_id in device_ids]
    portions = cut(records, parts)
    assert [part for portion in portions for part in portion.parts] == parts
    for portion in portions:
        messages = portion.forward.messages
        sent = [
            (message.offset, device_id)
            for message in messages
            for device_id in ([None] if message.address == Group("red") else recipients(message.address, Table()))
        ]
        assert sent == list(portion.parts)
        assert portion.forward.count == len(portion.parts) <= MOST
        assert len(messages) == 1 or sum(map(size_of, messages)) <= MOST_BYTES
        assert all(message.payload == records[message.offset].payload for message in messages)


def test_the_payload_of_a_record_goes_once_for_several_devices() -> None:
    (portion,) = cut([record(length=100), record()], [(0, "a"), (0, "b"), (1, "a")])
    assert [message.address for message in portion.forward.messages] == [Devices(("a", "b")), "a"]
