"""Any sequence of queuing, taking, replacing and dropping: an outbox compared with a plain model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from unittest.mock import patch

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cocoa_tornado.connection import outbox as tested
from cocoa_tornado.connection.making_room import OutboxLimits
from cocoa_tornado.connection.outbox import MOST_HIGH_IN_A_ROW, Outbox
from cocoa_tornado.connection.queue import CURSOR_BYTES
from cocoa_tornado.rules.box import LaneName
from cocoa_tornado.rules.terms import Terms

from ..profiles import examples
from .takers import FakeTaker

LIMITS = OutboxLimits(max_messages=7, max_bytes=500)
MOST_PER_TAKE = 150
SKIPPED = b"skip"

TERMS = [
    *[None] * 4,
    *(Terms("a"), Terms("b"), Terms("a", "high"), Terms("b", "low", expires_ms=10)),
    *(Terms(priority="high"), Terms(priority="high"), Terms(priority="low"), Terms(priority="low")),
    *(Terms(expires_ms=5), Terms(priority="high", expires_ms=10), Terms(priority="low", expires_ms=15)),
    *(Terms(collapse_key="k"), Terms(priority="high", collapse_key="k"), Terms(priority="low", collapse_key="k")),
    *(Terms(collapse_key="l", expires_ms=10), Terms(priority="high", collapse_key="l", number=1)),
    *(Terms(number=1), Terms(priority="high", number=1), Terms(priority="low", number=1)),
    *(Terms(number=0), Terms("a", number=0), Terms(expires_ms=10, number=1)),
]
"""A number of 1 stands for a new one."""
SIZES = [0, 0, 5, 5, 10, 20, 40, 100, 400]


STORED = [Terms(number=1), Terms(number=1), Terms(number=0), Terms("a", number=0)]
PLAIN = [None, None, Terms("a"), Terms(priority="low")]


def messages_with(terms: Sequence[Terms | None]) -> st.SearchStrategy[list[tuple[int, Terms | None, bool]]]:
    message = st.tuples(st.sampled_from(SIZES), st.sampled_from(terms), st.sampled_from([False, False, True]))
    return st.lists(message, min_size=1, max_size=6)


@dataclass(eq=False)
class Item:
    body: bytes
    stamp: int
    terms: Terms

    @property
    def cost(self) -> int:
        return len(self.body) + (0 if self.terms.number is None else CURSOR_BYTES)

    @property
    def lane(self) -> LaneName:
        return "high" if self.terms.priority == "high" else "normal"

    @property
    def frame(self) -> bytes:
        if self.terms.number is None:
            return self.body
        return frame_of(self.body, self.lane, self.terms.number) or b""


def frame_of(payload: bytes, lane: LaneName, number: int) -> bytes | None:
    return None if payload.startswith(SKIPPED) else b"%s %s%d" % (payload, lane.encode(), number)


class Outboxes(RuleBasedStateMachine):
    """An outbox, and beside it two lists, and what its socket was given."""

    @initialize()
    def begin(self) -> None:
        self._patch = patch.object(tested, "MOST_PER_TAKE", MOST_PER_TAKE)
        self._patch.start()
        self.outbox, self.taker = Outbox(), FakeTaker(0.0, frame_of)
        self.normal, self.high = list[Item](), list[Item]()
        self.begun = list[Item]()
        self.in_a_row = 0
        self.numbers = 0
        self.expired = list[Terms]()

    def teardown(self) -> None:
        if hasattr(self, "_patch"):
            self._patch.stop()

    # -- the model

    @property
    def queued(self) -> list[Item]:
        return self.normal + self.high

    @property
    def waiting_bytes(self) -> int:
        return sum(item.cost for item in self.queued + self.begun)

    def fits(self, item: Item) -> bool:
        waiting = len(self.queued) + len(self.begun)
        room = waiting < LIMITS.max_messages and self.waiting_bytes + item.cost <= LIMITS.max_bytes
        return room or not waiting

    def add(self, item: Item) -> None:
        (self.high if item.lane == "high" else self.normal).append(item)

    def remove(self, item: Item) -> None:
        (self.high if item.lane == "high" else self.normal).remove(item)

    def expire(self) -> None:
        for item in self.queued:
            if 0 < item.terms.expires_ms < self.taker.now:
                self.remove(item)
                self.expired.append(item.terms)

    def squeeze_in(self, item: Item, may_drop_low: bool) -> tuple[bool, int, int]:
        new, interims, lows = item.terms, 0, 0
        others = [each for each in self.queued if each.terms.interim_of]
        own = [each for each in others if each.terms.interim_of == new.interim_of]
        low = [each for each in self.normal if each.terms.priority == "low" and not each.terms.interim_of]
        candidates = own + [each for each in others if each not in own]
        candidates += low if may_drop_low and not new.interim_of else []
        before = (list(self.normal), list(self.high))
        while not self.fits(item):
            if not candidates:
                self.normal, self.high = before
                if new.interim_of:
                    return False, 1, 0
                return False, 0, int(may_drop_low and new.priority == "low")
            victim = candidates.pop(0)
            self.remove(victim)
            interims += bool(victim.terms.interim_of)
            lows += not victim.terms.interim_of
        self.add(item)
        return True, interims, lows

    def next_write(self) -> list[Item]:
        normal, high, picked, in_a_row = list(self.normal), list(self.high), list[Item](), self.in_a_row
        while (normal or high) and sum(len(item.frame) for item in picked) < MOST_PER_TAKE:
            if high and not (normal and in_a_row == MOST_HIGH_IN_A_ROW):
                picked.append(high.pop(0))
                in_a_row = in_a_row + 1 if normal else 0
            else:
                picked.append(normal.pop(0))
                in_a_row = 0
        return picked

    def give(self, items: list[Item]) -> None:
        """The socket has begun to take these."""
        for item in items:
            self.remove(item)
            self.in_a_row = self.in_a_row + 1 if item.lane == "high" and self.normal else 0
        if not self.queued and not self.begun:
            self.in_a_row = 0

    def check_given(self, given: tested.Given, items: list[Item]) -> None:
        stamps, numbered = given
        assert list(stamps) == [item.stamp for item in items if item.frame]
        assert numbered == sum(bool(item.terms.number) for item in items)

    # -- what happens

    def item(self, size: int, terms: Terms | None, is_skipped: bool) -> Item:
        self.numbers += 1
        if terms is not None and terms.number:
            terms = terms._replace(number=self.numbers)
        body = b"%s<%d>%s" % (SKIPPED if is_skipped else b"", self.numbers, b"x" * size)
        return Item(body, self.numbers, terms or Terms())

    @rule(
        messages=messages_with(TERMS) | messages_with(STORED) | messages_with(PLAIN),
        may_drop_low=st.booleans(),
    )
    def messages_are_queued(self, messages: list[tuple[int, Terms | None, bool]], may_drop_low: bool) -> None:
        for size, terms, is_skipped in messages:
            self.queue(size, terms, is_skipped, may_drop_low)

    def queue(self, size: int, terms: Terms | None, is_skipped: bool, may_drop_low: bool) -> None:
        item = self.item(size, terms, is_skipped and terms is not None and terms.number is not None)
        given = None if terms is None else item.terms
        if item.terms.collapse_key is not None:
            same = [each for each in self.queued if each.terms.collapse_key == item.terms.collapse_key]
            not_stored = sum(not each.terms.number for each in same)
            assert len(self.outbox.collapse(item.terms.collapse_key)) == not_stored
            for each in same:
                self.remove(each)
        if self.fits(item):
            assert self.outbox.push(item.body, item.stamp, LIMITS, given)
            self.add(item)
            return
        assert not self.outbox.push(item.body, item.stamp, LIMITS, given)
        expected = self.squeeze_in(item, may_drop_low)
        assert self.outbox.squeeze_in(item.body, item.stamp, LIMITS, given, may_drop_low=may_drop_low)[:3] == expected

    @precondition(lambda self: self.queued and not self.begun)
    @rule(
        share=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 1.0]), committed_bytes=st.sampled_from([0, 0, 1, 30])
    )
    def a_write(self, share: float, committed_bytes: int) -> None:
        self.expire()
        items = self.next_write()
        data = self.outbox.take(self.taker)
        assert data == b"".join(item.frame for item in items)
        assert self.outbox.taken_bytes == len(data)
        assert self.outbox.has_taken_all == (len(items) == len(self.queued))
        taken = round(share * len(data))
        if taken == len(data):
            self.check_given(self.outbox.given_all(), items)
            self.give(items)
            return
        committed = min(len(data), taken + committed_bytes)
        kept, given = self.outbox.given(taken, committed)
        complete, begun = list[Item](), list[Item]()
        for item in items:
            start = sum(len(earlier.frame) for earlier in complete + begun)
            if start >= committed:
                break
            (complete if start + len(item.frame) <= taken else begun).append(item)
        assert kept == sum(len(item.frame) for item in complete + begun)
        self.check_given(given, complete)
        self.begun = begun
        self.give(complete + begun)

    @precondition(lambda self: self.begun and not self.queued)
    @rule()
    def the_socket_is_lost(self) -> None:
        assert [body for body, _, _ in self.outbox.abandon()] == [item.body for item in self.begun]
        self.begun, self.in_a_row = [], 0

    @precondition(lambda self: self.begun)
    @rule()
    def socket_takes_the_rest(self) -> None:
        self.check_given(self.outbox.written(), self.begun)
        self.begun = []
        if not self.queued:
            self.in_a_row = 0

    @precondition(lambda self: len(self.queued) > 2)
    @rule()
    def everything_is_discarded(self) -> None:
        assert [body for body, _, _ in self.outbox.discard()] == [item.body for item in (*self.high, *self.normal)]
        self.normal, self.high = [], []
        if not self.begun:
            self.in_a_row = 0

    @rule(ms=st.integers(1, 4))
    def time_passes(self, ms: int) -> None:
        self.taker.now += ms

    # -- what holds

    @invariant()
    def it_counts_what_the_socket_has_begun_to_take(self) -> None:
        assert self.outbox.begun == len(self.begun)
        assert self.outbox.begun_numbered == sum(bool(item.terms.number) for item in self.begun)

    @invariant()
    def it_counts_what_waits(self) -> None:
        assert len(self.outbox) == len(self.queued) + len(self.begun)
        assert self.outbox.waiting_bytes == self.waiting_bytes
        assert self.outbox.has_queued == bool(self.queued)

    @invariant()
    def what_has_expired_is_reported_once(self) -> None:
        assert sorted(map(repr, self.taker.expired)) == sorted(map(repr, self.expired))

    @invariant()
    def an_empty_one_holds_no_list(self) -> None:
        if not len(self.outbox):
            empty = Outbox()
            names = (name for kind in Outbox.__mro__ for name in getattr(kind, "__slots__", ()))
            assert all(getattr(self.outbox, name) is getattr(empty, name) for name in names)


Outboxes.TestCase.settings = examples(60, steps=30)
TestOutboxes = Outboxes.TestCase
