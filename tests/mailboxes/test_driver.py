"""The driver's promises for every store, with failures and a close at any point."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cocoa_tornado.errors import MailboxClosed, MailboxError, ServiceError
from cocoa_tornado.mailboxes import fan_out_bound, fan_out_pace
from cocoa_tornado.mailboxes.backlog import CommitGroup, GroupLimits
from cocoa_tornado.mailboxes.driver import Driver
from cocoa_tornado.mailboxes.fan_out_pace import GROUPS_FIRST
from cocoa_tornado.mailboxes.port import FanOut, FanOutStep, LaneRead, MailboxState
from cocoa_tornado.mailboxes.store import FAN_OUT_STEP, Committed, Ledger, StoreTiming
from cocoa_tornado.rules.audiences import ALL as EVERYONE
from cocoa_tornado.rules.box import Position
from testing.virtual_time import VirtualTimeLoop

from ..profiles import examples
from .fake_store import FakeStore, Fate
from .stands import ALL, SOURCE, Clock, entries, entry, payloads

TIMING = StoreTiming(
    retry_s=(0.1, 2.0),
    patience_s=5.0,
    hang="the store hangs: nothing was {done} for {patience_s:g} s",
    start_waits=True,
    queries=32,
)
LIMITS = GroupLimits(max_entries=20, max_bytes=10_000, max_marks=3)
FAULTS = {"unavailable": "mailbox unavailable", "bug": "mailbox internal error"}
unavailable = pytest.mark.logs("cocoa.mailbox", FAULTS["unavailable"])
upkeep = pytest.mark.logs("cocoa.mailbox", "^mailbox upkeep refused$")
bug = pytest.mark.logs("cocoa.mailbox", FAULTS["bug"])

T = TypeVar("T")
Scene = Callable[[Driver, FakeStore], Awaitable[None]]


def made(store: FakeStore, timing: StoreTiming = TIMING) -> Driver:
    return Driver(store, Ledger(store.boxes.counters), timing, LIMITS)


def play(scene: Scene, *fates: Fate) -> FakeStore:
    """Run a READY driver in virtual time."""

    async def run() -> FakeStore:
        store = FakeStore(Clock())
        driver = made(store)
        await driver.start()
        store.fates.extend(fates)
        await scene(driver, store)
        await driver.close(1.0)
        return store

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(run())


@contextmanager
def log_lines() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("cocoa.mailbox")
    level = log.level
    log.addHandler(handler)
    log.setLevel("INFO")
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


# -- storing


@pytest.mark.parametrize(
    "fate",
    [
        Fate.FINE,
        Fate.REOPEN,
        *(pytest.param(fate, marks=unavailable) for fate in (Fate.AWAY, Fate.REFUSED, Fate.LOST)),
        pytest.param(Fate.BUG, marks=[unavailable, bug]),
    ],
)
@pytest.mark.parametrize("times", [1, 4])
def test_calls_are_answered_in_order_with_their_numbers_despite_any_failure(fate: Fate, times: int) -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        stored = [driver.append(entries(2 * n, 3)) for n in range(4)]
        assert await asyncio.gather(*stored) == [[1, 2, 3], [None, 4, 5], [None, 6, 7], [None, 8, 9]]
        assert driver.status().state is MailboxState.READY
        assert driver.counters.stored == 9

    play(scene, *[step for _ in range(times) for step in (fate, Fate.FINE)])


def test_what_has_queued_up_is_stored_together_within_bounds() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        small = [driver.append([entry(n)]) for n in range(50)]
        await asyncio.gather(*small)
        assert store.steps.count("commit") == 3
        large = [driver.append(entries(100 + 30 * n, 30)) for n in range(3)]
        await asyncio.gather(*large)
        assert store.steps.count("commit") == 6
        await asyncio.gather(*(driver.append([entry(200 + n, payload=b"x" * 6_000)]) for n in range(3)))
        assert store.steps.count("commit") == 9

    play(scene)


def test_a_mark_counts_at_once_and_is_stored_soon_by_itself() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        await driver.append(entries(0, 5))
        driver.acknowledge("doll", Position(2))
        driver.written("doll", Position(4))
        assert (await driver.look("doll")).normal.acked == 2
        assert store.box("doll").normal.acked is None
        await asyncio.sleep(0.6)
        assert (store.box("doll").normal.acked, store.box("doll").normal.written) == (2, 4)

    play(scene)


def test_many_marks_are_stored_in_several_groups() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        await driver.append([entry(n, f"d{n}") for n in range(8)])
        for n in range(8):
            driver.acknowledge(f"d{n}", Position(n + 1))
        await asyncio.sleep(0.6)
        assert [store.kept(f"d{n}") for n in range(8)] == [0] * 8
        assert store.steps.count("commit") == 4

    play(scene)


@unavailable
def test_a_mark_is_kept_while_its_group_fails_and_goes_with_what_came_later() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        await driver.append(entries(0, 5))
        store.fates.extend([Fate.REFUSED] * 4)
        driver.acknowledge("doll", Position(1))
        stored = driver.append(entries(5, 1))
        await asyncio.sleep(0.02)
        assert driver.status().state is MailboxState.OPENING
        driver.acknowledge("doll", Position(3))
        driver.acknowledge("doll", Position(2))
        assert (await driver.look("doll")).normal.acked == 3
        assert await stored == [6]
        assert store.box("doll").normal.acked == 3

    play(scene)


@upkeep
def test_marks_that_are_refused_with_messages_are_no_outage_and_hold_up_none() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        loop = asyncio.get_running_loop()
        store.refuses_marks = True
        await driver.append(entries(0, 1))
        driver.written("doll", Position(1))
        begun = loop.time()
        assert await asyncio.gather(*(driver.append(entries(n, 1)) for n in range(1, 4))) == [[2], [3], [4]]
        assert await driver.append(entries(4, 1)) == [5]
        assert loop.time() - begun < 0.1
        driver.written("doll", Position(5))
        await asyncio.sleep(20.0)
        assert driver.status().state is MailboxState.READY
        assert (await driver.look("doll")).normal.written == 5
        store.refuses_marks = False
        await asyncio.sleep(20.0)
        assert store.box("doll").normal.written == 5
        assert driver.counters.failures == 0

    with log_lines() as lines:
        play(scene)
    assert [line for line in lines if "upkeep" in line] == ["mailbox upkeep refused", "mailbox upkeep resumed"]


async def refuse(driver: Driver, refused: str) -> None:
    if refused == "marks":
        driver.written("doll", Position(1))
    else:
        with pytest.raises(MailboxError, match="refuses"):
            await driver.sweep()


@upkeep
@pytest.mark.parametrize("refused", ["marks", "sweeps"])
def test_upkeep_that_is_refused_for_good_is_no_outage_even_if_no_message_comes(refused: str) -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        setattr(store, f"refuses_{refused}", True)
        await driver.append(entries(0, 1))
        await refuse(driver, refused)
        for _ in range(20):
            await asyncio.sleep(1.0)
            assert driver.status().state is MailboxState.READY
        assert store.steps.count("try_storing") == 1
        setattr(store, f"refuses_{refused}", False)
        await asyncio.sleep(20.0)
        assert await driver.sweep() == 0

    with log_lines() as lines:
        play(scene)
    assert lines == ["mailbox ready", "mailbox upkeep refused", "mailbox upkeep resumed"]


@unavailable
@upkeep
@pytest.mark.parametrize("refused", ["marks", "sweeps"])
def test_upkeep_that_is_refused_is_an_outage_while_messages_would_be_refused_as_well(refused: str) -> None:
    """Which ends without a message."""

    async def scene(driver: Driver, store: FakeStore) -> None:
        setattr(store, f"refuses_{refused}", True)
        await driver.append(entries(0, 1))
        store.refuses_messages = True
        await refuse(driver, refused)
        await asyncio.sleep(20.0)
        assert driver.status().state is MailboxState.OPENING
        assert driver.status().detail == "the store refuses messages"
        store.refuses_messages = False
        await asyncio.sleep(20.0)
        assert driver.status().state is MailboxState.READY
        assert await driver.append(entries(1, 1)) == [2]
        assert driver.counters.failures == 1
        setattr(store, f"refuses_{refused}", False)
        await asyncio.sleep(20.0)

    with log_lines() as lines:
        play(scene)
    away, kept = ["mailbox unavailable", "mailbox ready"], ["mailbox upkeep refused", "mailbox upkeep resumed"]
    assert lines == ["mailbox ready", *away, *kept]


@unavailable
def test_a_store_that_takes_nothing_more_still_deletes() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        await driver.append(entries(0, 5))
        driver.acknowledge("doll", Position(4))
        store.fates.append(Fate.REFUSED)
        stored = driver.append(entries(5, 1))
        await asyncio.sleep(0.0025)  # one attempt, and what makes room
        assert (store.kept("doll"), stored.done()) == (1, False)
        assert await stored == [6]

    play(scene)


def test_marks_of_another_mailbox_never_reach_the_one_that_has_taken_its_place() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        await driver.append(entries(0, 5))
        driver.acknowledge("doll", Position(4))
        store.is_another = True
        store.fates.append(Fate.REOPEN)
        await driver.append(entries(5, 1))
        await asyncio.sleep(1.0)
        assert store.box("doll").normal.acked is None
        assert store.boxes.counters.lost == {}

    play(scene)


# -- sweeping


def test_a_sweep_is_asked_for_and_answered_once() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        assert [*await asyncio.gather(driver.sweep(), driver.sweep())] == [0, 0]
        assert store.steps.count("sweep") == 1

    play(scene)


@unavailable
def test_a_sweep_that_fails_is_owed_and_is_one_outage() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        store.fates.extend([Fate.REFUSED] * 6)
        with pytest.raises(MailboxError, match="is full"):
            await driver.sweep()
        await asyncio.sleep(20.0)
        assert driver.status().state is MailboxState.READY
        assert driver.counters.failures == 1

    play(scene)


# -- asking


def test_what_is_asked_while_the_store_is_busy_is_answered_together_and_one_that_is_wrong_fails_alone() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        await driver.append(entries(0, 3))
        look, wrong, read = (
            driver.look("doll"),
            driver.look("unspeakable"),
            driver.read("doll", [LaneRead("normal", 1, ALL)]),
        )
        with pytest.raises(MailboxError, match="no such name"):
            await wrong
        assert await look == store.box("doll")
        assert [message.payload for message in (await read)[0].messages] == payloads([1, 2])
        assert store.steps.count("answer") == 2
        await asyncio.gather(*(driver.look("doll") for _ in range(40)))
        assert store.steps.count("answer") == 5

    play(scene)


@unavailable
def test_an_answer_that_does_not_come_is_not_waited_for_and_the_mailbox_is_down_until_it_does() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        store.asking_fates.append(Fate.HANGS)
        hanging = driver.look("doll")
        await asyncio.sleep(2.0)
        late = driver.look("doll")
        await asyncio.sleep(2.9)
        assert driver.status().state is MailboxState.READY
        with pytest.raises(MailboxError, match="no answer within 5 s"):
            await hanging
        # Other work continues, and does not hide it.
        assert await driver.append(entries(0, 1)) == [1]
        assert driver.status().detail == "the store hangs: nothing was read for 5 s"
        assert not late.done()
        with pytest.raises(MailboxError, match="no answer within 5 s"):
            await late
        store.go_on.set()
        await asyncio.sleep(0.01)
        assert driver.status().state is MailboxState.READY
        assert (await driver.look("doll")).normal.last == 1
        assert driver.counters.failures == 1

    play(scene)


@unavailable
def test_questions_fail_at_once_while_the_store_is_unreachable_but_not_while_it_only_refuses() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        store.fates.extend([Fate.REFUSED, Fate.REFUSED])
        store.asking_fates.extend([Fate.FINE, Fate.AWAY])
        stored = driver.append(entries(0, 1))
        await asyncio.sleep(0.0015)
        assert driver.status().state is MailboxState.OPENING
        assert (await driver.look("doll")).normal.last == 0
        with pytest.raises(MailboxError, match="is away"):
            await driver.look("doll")
        with pytest.raises(MailboxError, match="is away"):
            await driver.look("doll")
        with pytest.raises(MailboxError, match="is away"):
            await driver.sweep()
        assert driver.status().messages is None
        assert await stored == [1]

    play(scene)


@unavailable
def test_an_outage_that_only_a_question_meets_is_found_out_and_ends_by_itself() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        store.asking_fates.append(Fate.AWAY)
        store.fates.append(Fate.AWAY)
        asked = [driver.look("doll") for _ in range(50)]
        for answer in asked:
            with pytest.raises(MailboxError, match="is away"):
                await answer
        await asyncio.sleep(1.0)
        assert driver.status().state is MailboxState.READY
        assert store.steps.count("open") == 3

    play(scene)


# -- the state


@unavailable
def test_one_outage_is_one_line_and_one_failure() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        for n in range(2):
            store.fates.extend([Fate.AWAY] * 8)
            await driver.append(entries(n, 1))
        assert driver.counters.failures == 2

    with log_lines() as lines:
        play(scene)
    assert lines == ["mailbox ready", *["mailbox unavailable", "mailbox ready"] * 2]


@unavailable
def test_what_hangs_is_down_after_its_patience_and_up_when_it_goes_on() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        store.fates.append(Fate.HANGS)
        stored = driver.append(entries(0, 2))
        await asyncio.sleep(4.9)
        assert driver.status().state is MailboxState.READY
        await asyncio.sleep(0.2)
        assert driver.status().detail == "the store hangs: nothing was stored for 5 s"
        await asyncio.sleep(3600.0)
        assert store.steps.count("commit") == 1  # two at once would lose the order
        store.go_on.set()
        assert await stored == [1, 2]
        assert driver.status().state is MailboxState.READY

    with log_lines() as lines:
        play(scene)
    assert lines == ["mailbox ready", "mailbox unavailable", "mailbox ready"]


@unavailable
def test_an_answer_that_hangs_and_then_fails_is_one_outage() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        store.asking_fates.append(Fate.HANGS_AND_FAILS)
        with pytest.raises(MailboxError, match="no answer within 5 s"):
            await driver.look("doll")
        store.go_on.set()
        await driver.append(entries(0, 1))
        await asyncio.sleep(1.0)
        assert driver.status().state is MailboxState.READY
        assert driver.counters.failures == 1

    with log_lines() as lines:
        play(scene)
    assert lines == ["mailbox ready", "mailbox unavailable", "mailbox ready"]


@unavailable
def test_a_store_that_a_question_found_unreachable_is_not_ready_before_it_is_open_again() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        store.fates.extend([Fate.HANGS, Fate.AWAY])
        store.asking_fates.append(Fate.AWAY)
        stored = driver.append(entries(0, 1))
        with pytest.raises(MailboxError, match="is away"):
            await driver.look("doll")
        store.go_on.set()
        assert await stored == [1]
        await asyncio.sleep(1.0)
        assert driver.status().state is MailboxState.READY

    with log_lines() as lines:
        play(scene)
    assert lines == ["mailbox ready", "mailbox unavailable", "mailbox ready"]


@unavailable
def test_the_delays_between_attempts_grow_and_have_a_bound() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        store.fates.extend([Fate.AWAY] * 200)
        stored = driver.append(entries(0, 1))
        await asyncio.sleep(100.0)
        assert 50 < store.steps.count("open") + store.steps.count("commit") < 180  # 1 s apart in the middle
        store.fates.clear()
        await stored

    play(scene)


@unavailable
@bug
def test_a_fault_of_the_gateway_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        store.fates.extend([Fate.BUG] * 5)
        assert await driver.append(entries(0, 1)) == [1]

    play(scene)
    (record,) = [record for record in caplog.records if FAULTS["bug"] in record.message]
    assert record.exc_info is not None


def test_a_start_that_can_never_work_fails_and_lets_go_of_everything() -> None:
    async def run() -> None:
        store = FakeStore(Clock())
        store.refusal = ServiceError("no mailbox")
        driver = made(store)
        with pytest.raises(ServiceError, match="no mailbox"):
            await driver.start()
        assert store.steps == ["open", "close"]
        await driver.close(1.0)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(run())


@unavailable
@pytest.mark.parametrize("fate", [Fate.HANGS, Fate.AWAY])
def test_a_start_does_not_wait_for_a_store_that_is_unreachable_or_hangs(fate: Fate) -> None:
    async def run() -> None:
        store = FakeStore(Clock())
        store.fates.append(fate)
        driver = made(store)
        await driver.start()
        assert driver.status().state is MailboxState.OPENING
        assert driver.key is None
        with pytest.raises(MailboxError):
            await driver.look("doll")
        # What is found out late is an outage: the gateway runs.
        store.refusal = ServiceError("no mailbox")
        store.go_on.set()
        stored = driver.append(entries(0, 1))
        await asyncio.sleep(10.0)
        assert driver.status().detail == "no mailbox"
        store.refusal = None
        assert await stored == [1]
        assert driver.counters.failures == 0
        await driver.close(1.0)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(run())


# -- the end


def test_a_close_stores_what_is_queued_marks_included() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        await driver.append(entries(0, 10))
        driver.written("doll", Position(10))
        stored = [driver.append(entries(10 * n, 10)) for n in range(1, 10)]
        await asyncio.gather(driver.close(5.0), driver.close(5.0))
        assert [future.result()[-1] for future in stored] == [10 * n for n in range(2, 11)]
        assert store.box("doll").normal.written == 10
        with pytest.raises(MailboxClosed):
            driver.append(entries(100, 1))
        for refused in (driver.look("doll"), driver.sweep()):
            with pytest.raises(MailboxClosed):
                await refused
        driver.written("doll", Position(11))
        assert driver.status().state is MailboxState.CLOSED
        assert store.steps.count("close") == 1

    play(scene)


# -- joins and fan-outs

GROUPS = frozenset((EVERYONE, "group:kitchen"))


def everyone(offset: int) -> FanOut:
    return FanOut(EVERYONE, frozenset(), b"hello", 1_000 + offset, SOURCE, offset)


def test_a_join_is_stored_before_what_is_appended_later() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        steps: list[FanOutStep] = []
        driver.watch_fan_outs(steps.append)
        joined = [driver.join("a", GROUPS), driver.join("b", GROUPS)]
        appended = driver.append([everyone(0)])
        await asyncio.gather(*joined, appended)
        assert [step.numbers and set(step.numbers) for step in steps] == [{"a", "b"}]
        assert store.steps.count("commit") == 1

    play(scene)


def test_more_joins_than_fit_in_a_group_hold_back_what_is_appended_after_them() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        steps: list[FanOutStep] = []
        driver.watch_fan_outs(steps.append)
        for n in range(7):
            driver.join(f"d{n}", GROUPS)
        await driver.append([everyone(0)])
        assert steps[0].recipients == 7
        assert store.steps.count("commit") == 3  # three devices in each

    play(scene)


@unavailable
def test_the_newest_join_of_a_device_counts_and_all_are_complete() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        store.fates.append(Fate.AWAY)
        joined = [driver.join("a", GROUPS)]
        await asyncio.sleep(0.002)  # the attempt fails
        joined.append(driver.join("a", frozenset((EVERYONE, "group:hall"))))
        await asyncio.gather(*joined)
        steps: list[FanOutStep] = []
        driver.watch_fan_outs(steps.append)
        kitchen, hall = everyone(0)._replace(audience="group:kitchen"), everyone(1)._replace(audience="group:hall")
        await driver.append([kitchen, hall])
        assert [step.recipients for step in steps] == [0, 1]

    play(scene)


@unavailable  # until a message is stored, nothing shows that the store accepts more than joins
def test_joins_are_stored_though_marks_are_refused() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        store.refuses_marks = True
        driver.written("doll", Position(1))
        await driver.join("a", GROUPS)
        await driver.append(entries(0, 1))

    play(scene)


@unavailable
def test_a_join_that_was_not_stored_fails_when_the_mailbox_closes() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        store.fates.extend([Fate.AWAY] * 1000)
        joined = driver.join("a", GROUPS)
        await driver.close(0.01)
        with pytest.raises(MailboxClosed):
            await joined
        with pytest.raises(MailboxClosed):
            driver.join("a", GROUPS)

    play(scene)


def test_groups_go_before_steps_of_a_fan_out_which_goes_on_all_the_same() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        for n in range(4 * FAN_OUT_STEP):
            store.boxes.join(f"d{n}", GROUPS)
        await driver.append([everyone(0)])
        await asyncio.sleep(0)  # the second step begins
        del store.steps[:]
        waiting = [driver.append(entries(1, 1))]
        while store.fan_outs:  # there is always a group that is due
            waiting.append(driver.append(entries(len(waiting) + 1, 1)))
            await asyncio.sleep(0.0005)
        stored = [step for step in store.steps if step in ("commit", "fan_out")]
        runs = [(name, len(list(run))) for name, run in groupby(stored)]
        assert [(name, length) for name, length in runs if name == "fan_out"] == [("fan_out", 1)] * 2
        assert max(length for name, length in runs if name == "commit") == GROUPS_FIRST + 1
        await asyncio.gather(*waiting)

    play(scene)


def test_a_fan_out_to_very_many_rests_between_its_steps_while_messages_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out_pace, "PACED_FROM", FAN_OUT_STEP)
    monkeypatch.setattr(fan_out_pace, "REST_FACTOR", 1e12)

    async def scene(driver: Driver, store: FakeStore) -> None:
        for n in range(6 * FAN_OUT_STEP):
            store.boxes.join(f"d{n}", GROUPS)
        await driver.append([everyone(0)])
        for offset in range(1, 50):
            await driver.append(entries(offset, 1))
        assert store.steps.count("fan_out") == 1
        assert store.fan_outs == 1

    play(scene)


def test_a_fan_out_does_not_rest_while_another_one_waits_for_it_and_joins_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fan_out_pace, "PACED_FROM", FAN_OUT_STEP)
    monkeypatch.setattr(fan_out_pace, "REST_FACTOR", 1e12)
    monkeypatch.setattr(fan_out_bound, "FAN_OUTS_UNDER_WAY", 1)

    async def scene(driver: Driver, store: FakeStore) -> None:
        for n in range(6 * FAN_OUT_STEP):
            store.boxes.join(f"d{n}", GROUPS)
        await driver.append([everyone(0)])
        for offset in range(1, 20):
            await driver.append(entries(offset, 1))
        assert store.fan_outs == 1  # it rests
        waiting = driver.append([everyone(20)])
        await driver.join("late", GROUPS)
        assert not waiting.done()
        await waiting
        assert (store.fan_outs, driver.counters.fan_out_waits) == (1, 1)

    play(scene)


def test_a_fan_out_goes_on_while_nothing_else_is_due() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        for n in range(3 * FAN_OUT_STEP):
            store.boxes.join(f"d{n}", GROUPS)
        await driver.append([everyone(0)])
        await asyncio.sleep(1)
        assert (store.fan_outs, store.steps.count("fan_out")) == (False, 2)

    play(scene)


@unavailable
def test_a_fan_out_whose_step_fails_goes_on() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        steps: list[FanOutStep] = []
        driver.watch_fan_outs(steps.append)
        for n in range(2 * FAN_OUT_STEP):
            store.boxes.join(f"d{n}", GROUPS)
        store.fates.extend([Fate.FINE, Fate.AWAY])
        await driver.append([everyone(0)])
        await asyncio.sleep(5)
        assert [(len(step.numbers or ()), step.is_last) for step in steps] == [(500, False), (500, True)]
        assert driver.status().state is MailboxState.READY

    play(scene)


def test_a_close_stores_marks_though_the_last_group_has_just_been_stored() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        closing: list[asyncio.Task[None]] = []
        commit = store.commit

        async def commit_and_close(group: CommitGroup) -> Committed:
            committed = await commit(group)
            driver.written("doll", Position(1))
            closing.append(asyncio.ensure_future(driver.close(5.0)))
            await asyncio.sleep(0)  # it is called, and the driver continues before anything that it has begun
            return committed

        store.commit = commit_and_close  # type: ignore[method-assign]
        assert await driver.append(entries(0, 1)) == [1]
        await closing[0]
        assert store.box("doll").normal.written == 1

    play(scene)


@pytest.mark.parametrize("fate", [pytest.param(fate, marks=unavailable) for fate in (Fate.AWAY, Fate.HANGS)])
def test_a_close_takes_no_longer_than_it_may(fate: Fate) -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        loop = asyncio.get_running_loop()
        store.fates.extend([fate] * 1_000)
        stored = driver.append(entries(0, 1))
        await asyncio.sleep(6.0)
        store.asking_fates.append(Fate.HANGS)
        asked = driver.look("doll")
        begun = loop.time()
        await driver.close(10.0)
        assert 8.0 < loop.time() - begun <= 10.0
        for future in (stored, asked):
            with pytest.raises(MailboxError):
                await future
        assert isinstance(stored.exception(), MailboxClosed)

    play(scene)


@unavailable
def test_a_close_makes_use_of_its_time() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        store.fates.extend([Fate.AWAY] * 40)
        stored = driver.append(entries(0, 1))
        await driver.close(10.0)
        assert await stored == [1]

    play(scene)


def test_a_driver_that_was_never_started_can_be_closed() -> None:
    async def run() -> None:
        driver = made(FakeStore(Clock()))
        stored = driver.append(entries(0, 1))
        await driver.close(1.0)
        with pytest.raises(MailboxClosed):
            await stored

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(run())


# -- anything at any time


WAITS = st.sampled_from([0.0, 0.0005, 0.002, 0.1, 0.7, 6.0])
# A hanging call stops everything else until it continues.
FATES = st.lists(st.sampled_from([*Fate, *[Fate.FINE, Fate.LOST, Fate.REFUSED] * 2]), max_size=3)


class DriverMachine(RuleBasedStateMachine):
    """Calls, failures at any step, lost replies, hangs, and a close at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.lines: list[str] = []
        self._context = log_lines()
        self.lines = self._context.__enter__()
        self.store, self.driver = self._run(self._begin)
        self.calls: list[asyncio.Future[list[int | None]]] = []
        self.sizes: list[int] = []
        self.queries: list[asyncio.Future[Any]] = []
        self.acked = 0
        self.offset = 0
        self.is_closed = False
        self.steps_left = 0

    def _run(self, step: Callable[[], Awaitable[T]]) -> T:
        async def run() -> T:
            return await step()

        return self.runner.run(run())

    async def _begin(self) -> tuple[FakeStore, Driver]:
        store = FakeStore(Clock())
        driver = made(store)
        await driver.start()
        return store, driver

    @initialize(close_after=st.sampled_from([5, 20, 1_000]))
    def live_for(self, close_after: int) -> None:
        self.steps_left = close_after

    @rule(count=st.integers(0, 9), again=st.integers(0, 3), fates=FATES, wait_s=WAITS)
    def append(self, count: int, again: int, fates: list[Fate], wait_s: float) -> None:
        self.store.fates.extend(fates)
        first = max(0, self.offset - again)

        async def call() -> None:
            try:
                self.calls.append(self.driver.append(entries(first, count + self.offset - first)))
            except MailboxClosed:
                assert self.is_closed
                return
            assert not self.is_closed
            self.sizes.append(count)
            self.offset += count
            await asyncio.sleep(wait_s)

        self._run(call)

    @rule(number=st.integers(0, 40), wait_s=WAITS)
    def acknowledge(self, number: int, wait_s: float) -> None:
        async def call() -> None:
            self.driver.acknowledge("doll", Position(number))
            await asyncio.sleep(wait_s)

        if not self.is_closed:
            # A device acknowledges what it was sent, which is stored.
            number = min(number, self.store.box("doll").normal.last)
            self.acked = max(self.acked, number)
            self._run(call)

    @rule(page=st.booleans(), fates=FATES, wait_s=WAITS)
    def ask(self, page: bool, fates: list[Fate], wait_s: float) -> None:
        self.store.asking_fates.extend(fates)

        async def call() -> None:
            self.queries.append(
                self.driver.read("doll", [LaneRead("normal", 0, ALL)]) if page else self.driver.look("doll")
            )
            await asyncio.sleep(wait_s)

        self._run(call)

    @rule(fates=FATES, wait_s=WAITS)
    def sweep(self, fates: list[Fate], wait_s: float) -> None:
        self.store.fates.extend(fates)

        async def call() -> None:
            self.queries.append(asyncio.ensure_future(self.driver.sweep()))
            await asyncio.sleep(wait_s)

        self._run(call)

    @rule(marks=st.booleans(), sweeps=st.booleans())
    def refuse_upkeep(self, marks: bool, sweeps: bool) -> None:
        """From now on, in any case."""
        self.store.refuses_marks, self.store.refuses_sweeps = marks, sweeps

    @rule(wait_s=WAITS)
    def go_on(self, wait_s: float) -> None:
        """End all hangs."""

        async def call() -> None:
            self.store.go_on.set()
            await asyncio.sleep(0)
            self.store.go_on.clear()
            await asyncio.sleep(wait_s)

        self._run(call)

    @precondition(lambda self: self.steps_left <= 0 and not self.is_closed)
    @rule(timeout_s=st.sampled_from([0.0, 0.003, 3.0]))
    def close(self, timeout_s: float) -> None:
        self.is_closed = True
        self._run(lambda: self.driver.close(timeout_s))
        assert self.driver.status().state is MailboxState.CLOSED
        assert all(call.done() for call in self.calls)

    @invariant()
    def a_step_passes(self) -> None:
        self.steps_left -= 1

    @invariant()
    def calls_are_answered_in_their_order_and_never_fail_while_it_is_open(self) -> None:
        done = [call.done() and call.exception() is None for call in self.calls]
        assert done == sorted(done, reverse=True)
        for call in self.calls:
            if call.done() and call.exception() is not None:
                assert self.is_closed
                assert isinstance(call.exception(), MailboxClosed)

    @invariant()
    def every_entry_has_its_number(self) -> None:
        """Even if the reply to an attempt was lost."""
        expected = 0
        for call, fresh in zip(self.calls, self.sizes, strict=True):
            if not call.done() or call.exception() is not None:
                break
            numbers = call.result()
            assert numbers == [None] * (len(numbers) - fresh) + list(range(expected + 1, expected + fresh + 1))
            expected += fresh
        last = self.store.box("doll").normal.last
        assert last >= expected
        # All entries of a call are stored, or none.
        assert last in [sum(self.sizes[:count]) for count in range(len(self.sizes) + 1)]

    @invariant()
    def no_mark_is_stored_that_was_not_set(self) -> None:
        assert (self.store.box("doll").normal.acked or 0) <= self.acked

    @invariant()
    def the_log_has_one_line_for_each_change_of_state(self) -> None:
        changes = [line for line in self.lines if line in ("mailbox ready", "mailbox unavailable")]
        assert all(one != other for one, other in pairwise(changes))
        assert changes.count("mailbox unavailable") == self.driver.counters.failures
        state = self.driver.status().state
        if state is not MailboxState.CLOSED:
            assert (changes[-1] == "mailbox ready") == (state is MailboxState.READY)

    def teardown(self) -> None:
        try:
            self._run(self._heal)
        finally:
            self._context.__exit__(None, None, None)
            self.runner.close()

    async def _heal(self) -> None:
        """Without further failures, everything is stored and answered."""
        self.store.fates.clear()
        self.store.asking_fates.clear()
        self.store.refuses_marks = self.store.refuses_sweeps = False
        self.store.go_on.set()
        await asyncio.sleep(20.0)
        assert all(future.done() for future in (*self.calls, *self.queries))
        for query in self.queries:
            assert query.exception() is None or isinstance(query.exception(), MailboxError)
        if not self.is_closed:
            assert self.driver.status().state is MailboxState.READY
            assert self.store.box("doll").normal.last == self.offset
            assert (self.store.box("doll").normal.acked or 0) == self.acked
            await self.driver.close(1.0)
            self.is_closed = True
        self.calls_are_answered_in_their_order_and_never_fail_while_it_is_open()
        self.every_entry_has_its_number()


@pytest.mark.logs("cocoa.mailbox", ".", optional=True)
def test_no_sequence_of_events_loses_reorders_or_doubles_anything() -> None:
    run_state_machine_as_test(DriverMachine, settings=examples(60, steps=40))


# -- waiting for marks


@pytest.mark.parametrize("fate", [Fate.AWAY, Fate.REOPEN, Fate.LOST])
@pytest.mark.parametrize("with_join", [False, True])
@pytest.mark.logs("cocoa.mailbox", FAULTS["unavailable"], optional=True)
def test_who_waits_for_marks_waits_until_they_are_stored_whatever_the_store_does(fate: Fate, with_join: bool) -> None:
    done: list[tuple[bool, int]] = []

    async def scene(driver: Driver, store: FakeStore) -> None:
        store.checks_holders = True
        [number] = await driver.append([entry(0)])
        driver.written("doll", Position(number or 0))
        if with_join:
            driver.refresh("doll", frozenset())
        waiting = driver.marked("doll")
        assert waiting is not None
        store.fates.append(fate)
        await asyncio.wait_for(waiting, 60)
        done.append((driver.marked("doll") is None, (await driver.look("doll")).normal.written))

    play(scene)
    assert done == [(True, 1)]


def test_nobody_waits_for_marks_that_the_store_refuses() -> None:
    async def scene(driver: Driver, store: FakeStore) -> None:
        store.checks_holders = store.refuses_marks = True
        driver.written("doll", Position(1))
        waiting = driver.marked("doll")
        assert waiting is not None
        await asyncio.wait_for(waiting, 60)
        store.refuses_marks = False

    play(scene)
