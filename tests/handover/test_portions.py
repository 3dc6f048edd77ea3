"""The records that are handed over to one sibling."""

from __future__ import annotations

from cocoa_tornado.handover.pieces import Delivery, Piece, merged
from cocoa_tornado.handover.portions import MOST_BYTES, MOST_RECORDS, Portions
from cocoa_tornado.rules.records import Record


def piece(*sizes: int) -> Piece:
    records = [Record("a", b"x" * size, 0) for size in sizes]
    return Piece(Delivery(records, range(len(sizes)), [("p", len(sizes))], lambda: None), range(len(sizes)))


def test_portions_are_bounded_in_records_and_in_bytes() -> None:
    portions = Portions()
    sizes = [1] * (MOST_RECORDS + 1) + [MOST_BYTES // 2] * 3 + [2 * MOST_BYTES, 1, 1]
    portions.post(piece(*sizes))
    portions.post(piece(1))
    sent = list(portions.to_send())
    assert [portion.number for portion in sent] == [1, 2, 3, 4, 5]
    found = [merged(portion.pieces).offsets for portion in sent]
    assert [offset for offsets in found for offset in offsets] == [*range(len(sizes)), 0]
    assert [len(offsets) for offsets in found] == [MOST_RECORDS, 2, 2, 1, 3]


def test_a_portion_is_sent_once_and_returned_once_when_it_is_acknowledged() -> None:
    portions = Portions()
    portions.post(piece(1))
    (portion,) = portions.to_send()
    assert (list(portions.to_send()), portions.is_idle, portions.last) == ([], False, 1)
    assert portions.acknowledge(1) == [portion]
    assert (portions.acknowledge(1), portions.is_idle) == ([], True)


def test_what_is_announced_between_two_records_divides_them() -> None:
    portions = Portions()
    portions.post(piece(1))
    portions.close()
    portions.seen = 7
    portions.post(piece(1))
    assert [portion.seen for portion in portions.to_send()] == [0, 7]


def test_a_sibling_that_ends_leaves_all_that_it_has_not_acknowledged() -> None:
    portions = Portions()
    for _ in range(3):
        portions.post(piece(1))
        portions.close()
    portions.post(piece(1))
    portions.acknowledge(1)
    assert [portion.number for portion in portions.take_back()] == [2, 3, 4]
    assert (portions.is_idle, portions.acknowledged) == (True, 4)


def test_a_sibling_has_stopped_if_it_acknowledges_nothing_between_two_looks() -> None:
    portions = Portions()
    assert not portions.has_stopped()
    portions.post(piece(1))
    portions.close()
    portions.post(piece(1))
    assert portions.has_stopped()
    portions.acknowledge(1)
    assert not portions.has_stopped()
    assert portions.has_stopped()
