"""A server detects losses in its inbox (cocoa_tornado.relay.redis_inbox)."""

from __future__ import annotations

import pytest

from cocoa_tornado.relay.redis_inbox import InboxPosition
from cocoa_tornado.relay.redis_lua import Entry, Inbox, entries_of

TRIMMED = ["the inbox was trimmed or deleted"]


def entry(sequence: int) -> Entry:
    return Entry(sequence, "a", (b"%d" % sequence, b"%d" % (100 * sequence)), b"")


def test_an_inbox_without_a_gap_has_lost_nothing() -> None:
    position = InboxPosition()
    assert position.check(Inbox(0, 0, 0)) == []
    position.take([entry(1), entry(2)])
    assert (position.sequence, position.totals) == (2, (b"2", b"200"))
    assert position.check(Inbox(sequence=4, left=2, lost=0)) == []
    position.take([entry(3), entry(4)])
    assert position.check(Inbox(4, 0, 0)) == []


def test_a_gap_is_noticed_once() -> None:
    position = InboxPosition()
    position.take([entry(1), entry(3)])
    assert position.check(Inbox(3, 0, 0)) == TRIMMED
    assert position.check(Inbox(3, 0, 0)) == []


@pytest.mark.parametrize("sequence", [9, 0], ids=["deleted", "with its counts"])
def test_a_deleted_inbox_is_noticed_although_nothing_else_comes(sequence: int) -> None:
    position = InboxPosition()
    position.take([entry(n) for n in range(1, 6)])
    assert position.check(Inbox(sequence, left=0, lost=0)) == TRIMMED
    assert position.sequence == max(5, sequence)
    assert position.check(Inbox(position.sequence, 0, 0)) == []


def test_that_there_was_no_room_is_noticed_once_for_each_time() -> None:
    position = InboxPosition()
    assert position.check(Inbox(0, 0, lost=1)) == ["the inbox was full"]
    assert position.check(Inbox(0, 0, lost=1)) == []
    assert position.check(Inbox(0, 0, lost=3)) == ["the inbox was full"]


def test_entries_of_other_programs_are_not_entries() -> None:
    fields = [b"s", b"a", b"t", b"1 70", b"m", b"x"]
    reply = [[b"key", [[b"1-0", fields], [b"1700000000000-0", [b"hello", b"world"]], [b"3-0", [b"t", b"? 1"]]]]]
    assert entries_of(reply) == [Entry(1, "a", (b"1", b"70"), b"x")]
    assert entries_of(None) == []


def test_the_totals_of_entries_that_are_lost_are_unknown_until_the_next_one() -> None:
    position = InboxPosition()
    position.take([entry(1)])
    assert position.check(Inbox(sequence=9, left=0, lost=0)) == TRIMMED
    assert position.totals == (b"", b"")
    position.take([entry(10)])
    assert (position.totals, position.check(Inbox(10, 0, 0))) == ((b"10", b"1000"), [])
