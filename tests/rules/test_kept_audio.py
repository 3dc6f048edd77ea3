"""One stream's audio on its way to workers, one after another."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cocoa_tornado.rules.byte_budget import ByteBudget
from cocoa_tornado.rules.kept_audio import HELD_BYTES, MIN_TO_RESUME, KeptAudio

from ..profiles import examples

MIB = 1024 * 1024


def kept(limit: int = 64 * MIB) -> KeptAudio:
    return KeptAudio(ByteBudget(limit))


def add(audio: KeptAudio, count: int) -> int:
    return audio.add(memoryview(bytes(count)))


def test_it_holds_its_device_back_when_no_worker_takes_it() -> None:
    audio = kept()
    assert add(audio, MIB) == HELD_BYTES
    assert audio.is_full
    audio.take(1000)
    assert not audio.is_full
    assert add(audio, MIB) == 1000


def test_another_worker_begins_at_the_beginning_and_is_worth_it_when_there_is_half_as_much_more() -> None:
    audio = kept()
    assert not audio.has_enough
    audio.add(memoryview(b"abcdef"))
    assert audio.has_enough
    assert audio.take(100) == b"abcdef"
    audio.rewind()
    assert not audio.has_enough
    assert (audio.repeated, audio.unsent) == (6, 6)
    add(audio, MIN_TO_RESUME - 1)
    assert not audio.has_enough
    add(audio, 1)
    assert audio.has_enough
    assert audio.take(6) == b"abcdef"


def test_a_long_stream_without_a_worker_is_not_held_back_before_it_has_enough() -> None:
    audio = kept()
    for _ in range(8):
        add(audio, HELD_BYTES)
        audio.take(HELD_BYTES)
    audio.rewind()
    assert add(audio, 4 * MIB) == MIB
    assert audio.is_full
    assert audio.has_enough


def test_a_long_stream_that_is_not_kept_holds_no_more_than_a_short_one() -> None:
    audio = kept(0)
    for _ in range(32):
        add(audio, HELD_BYTES)
        audio.take(HELD_BYTES)
    while not audio.is_full:
        add(audio, 1000)
    assert len(audio) == HELD_BYTES


def test_where_there_is_no_room_to_keep_it_only_what_is_unsent_is_held() -> None:
    budget = ByteBudget(1000)
    first, second = KeptAudio(budget), KeptAudio(budget)
    add(first, 600)
    first.take(500)
    add(second, 600)
    assert (first.is_whole, second.is_whole, budget.taken) == (True, False, 600)
    second.take(500)
    assert (len(second), second.unsent) == (100, 100)
    add(first, 500)
    assert (first.is_whole, len(first)) == (False, 600)
    first.take(600)
    first.clear()
    second.clear()
    assert budget.taken == 0


def test_a_parked_stream_that_finds_no_room_wants_a_worker_at_once() -> None:
    audio = kept(1000)
    add(audio, 900)
    audio.take(900)
    audio.rewind()
    add(audio, 200)
    assert audio.has_enough
    assert not audio.is_whole
    assert len(audio.take(5000)) == 1100


class Streams(RuleBasedStateMachine):
    """Two streams with little room; every byte depends on its position."""

    LIMIT = 100_000

    def __init__(self) -> None:
        super().__init__()
        self.budget = ByteBudget(self.LIMIT)
        self.audio = [KeptAudio(self.budget), KeptAudio(self.budget)]
        self.given = [0, 0]
        self.received = [0, 0]  # by the worker, since it began
        self.total = [0, 0]  # by all workers
        self.has_worker = [False, False]
        self.is_over = [False, False]

    which = st.integers(0, 1)

    @rule(at=which, size=st.integers(1, 60_000))
    def comes(self, at: int, size: int) -> None:
        if not self.is_over[at]:
            data = bytes((self.given[at] + i) % 251 for i in range(size))
            self.given[at] += self.audio[at].add(memoryview(data))

    @rule(at=which, size=st.integers(1, 60_000))
    def goes(self, at: int, size: int) -> None:
        audio = self.audio[at]
        if self.is_over[at]:
            return
        if not self.has_worker[at] and not audio.has_enough:
            return
        self.has_worker[at] = True
        piece = audio.take(size)
        assert piece == bytes((self.received[at] + i) % 251 for i in range(len(piece)))
        self.received[at] += len(piece)
        self.total[at] += len(piece)

    @rule(at=which)
    def loses_its_worker(self, at: int) -> None:
        if self.has_worker[at] and self.audio[at].is_whole and not self.is_over[at]:
            self.audio[at].rewind()
            self.has_worker[at], self.received[at] = False, 0

    @rule(at=which)
    def ends(self, at: int) -> None:
        audio = self.audio[at]
        if not self.is_over[at]:
            audio.stop_keeping()
            self.has_worker[at] = True
            while audio.unsent:
                self.goes(at, 60_000)
            assert self.received[at] == self.given[at], "something is lost"
            audio.clear()
            self.is_over[at] = True

    @precondition(lambda self: all(self.is_over))
    @rule()
    def nothing_is_left(self) -> None:
        assert self.budget.taken == 0

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        assert 0 <= self.budget.taken <= self.LIMIT
        assert sum(map(len, self.audio)) <= self.LIMIT + 2 * HELD_BYTES

    @invariant()
    def workers_hear_at_most_four_times_as_much_as_came(self) -> None:
        for total, given in zip(self.total, self.given, strict=True):
            assert total <= 4 * given

    def teardown(self) -> None:
        for at in (0, 1):
            self.ends(at)
        assert self.budget.taken == 0


TestStreams = Streams.TestCase
TestStreams.settings = examples(100, steps=40)
