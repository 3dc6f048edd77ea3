"""The selector that bounds a turn of the event loop, on real sockets, and beside the standard library's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import selectors
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.turns import MAX_PER_TURN
from cocoa_tornado.web.turns import new_event_loop

if not sys.platform.startswith("linux"):
    pytest.skip("only Linux has epoll", allow_module_level=True)

from cocoa_tornado.web.turns import TurnSelector

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
CROWD = 150


class Pairs:
    """Pairs of connected TCP sockets, closed at the end of the test."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]

    def make(self) -> tuple[socket.socket, socket.socket]:
        theirs = socket.create_connection(self._listener.getsockname())
        ours, _ = self._listener.accept()
        ours.setblocking(False)
        self._sockets += [ours, theirs]
        return ours, theirs

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    made = Pairs()
    yield made
    made.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def selector() -> Iterator[TurnSelector]:
    made = TurnSelector()
    yield made
    made.close()


@contextlib.contextmanager
def many_events(count: int, initial: int = 0) -> Iterator[list[int]]:
    """Descriptors that are ready whenever they have been written to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 100:
        pytest.skip(f"this machine lets a process open {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 1000), hard))
    made = [os.eventfd(initial, os.EFD_NONBLOCK) for _ in range(count)]
    yield made
    for event in made:
        os.close(event)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def fill(sock: socket.socket) -> None:
    """Until it takes no more."""
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(1 << 16))


def test_of_a_crowd_that_speaks_each_turn_hears_some_until_all_are_heard(pairs: Pairs, selector: TurnSelector) -> None:
    for number in range(CROWD):
        ours, theirs = pairs.make()
        selector.register(ours, READ, number)
        theirs.send(b"x")
    heard: set[int] = set()
    while len(heard) < CROWD:
        ready = selector.select(0)
        assert 0 < len(ready) <= MAX_PER_TURN
        for key, events in ready:
            assert events == READ
            heard.add(key.data)
            key.fileobj.recv(1)  # type: ignore[union-attr]  # it is the socket that was registered
    assert selector.select(0) == []


def test_who_speaks_is_heard_before_a_crowd_that_is_gone(pairs: Pairs, selector: TurnSelector) -> None:
    for number in range(CROWD):
        ours, theirs = pairs.make()
        selector.register(ours, READ, "gone")
        if number % 2:
            reset(theirs)
        else:
            theirs.close()
    ours, theirs = pairs.make()
    selector.register(ours, READ, "alive")
    theirs.send(b"x")
    ready = selector.select(0)
    assert [key.data for key, _ in ready].count("alive") == 1
    assert len(ready) == MAX_PER_TURN
    assert all(events == READ for _, events in ready)


@pytest.mark.parametrize("ready", [150, 1000, 8192])
def test_of_a_crowd_that_does_not_stop_all_have_as_many_turns(ready: int, selector: TurnSelector) -> None:
    rounds, turns = 5, Counter[int]()
    with many_events(ready, initial=1) as events:
        for event in events:
            selector.register(event, READ)
        for _ in range(rounds * ready // MAX_PER_TURN + 1):
            turns.update(key.fd for key, _ in selector.select(0))
    assert set(turns) == set(events)
    assert max(turns.values()) - min(turns.values()) <= 1


@given(st.lists(st.integers(0, 2 * MAX_PER_TURN), min_size=1, max_size=30), st.integers(0, 300))
def test_nobody_waits_for_more_turns_than_there_are_others_before_it(more: list[int], backlog: int) -> None:
    selector, waiting = TurnSelector(), deque[int]()
    with many_events(backlog + sum(more)) as events:
        for event in events:
            selector.register(event, READ)
        sleeping = iter(events)
        for new in (backlog, *more):
            for event in islice(sleeping, new):
                os.eventfd_write(event, 1)
                waiting.append(event)
            expected = [waiting.popleft() for _ in range(min(MAX_PER_TURN, len(waiting)))]
            heard = [key.fd for key, _ in selector.select(0)]
            assert heard == expected
            for event in heard:
                os.eventfd_read(event)
    selector.close()


def test_of_the_gone_none_is_kept_from_its_turn_by_those_who_stay(pairs: Pairs, selector: TurnSelector) -> None:
    for number in range(CROWD):
        ours, theirs = pairs.make()
        selector.register(ours, READ, number)
        theirs.shutdown(socket.SHUT_WR) if number < MAX_PER_TURN else theirs.send(b"x")
    heard = {key.data for _ in range(500) for key, _ in selector.select(0)}
    assert heard == set(range(CROWD))


def test_what_it_says_of_a_few_sockets_is_what_the_standard_library_says(pairs: Pairs, selector: TurnSelector) -> None:
    standard = selectors.EpollSelector()
    quiet, speaks, closed, was_reset, full = (pairs.make() for _ in range(5))
    speaks[1].send(b"x")
    closed[1].shutdown(socket.SHUT_WR)
    reset(was_reset[1])
    fill(full[0])
    full[1].shutdown(socket.SHUT_WR)
    for events in (READ, WRITE, READ | WRITE, READ):
        for one in (selector, standard):
            for ours, _ in (quiet, speaks, closed, was_reset, full):
                if ours.fileno() in one.get_map():
                    one.modify(ours, events, "again")
                else:
                    one.register(ours, events)
        time.sleep(0.01)
        found, expected = [sorted((key.fd, ready) for key, ready in one.select(0)) for one in (selector, standard)]
        assert found == expected
        assert found or events == WRITE
    selector.unregister(speaks[0])
    assert speaks[0].fileno() not in [key.fd for key, _ in selector.select(0)]
    standard.close()


def test_the_end_of_a_socket_that_is_not_read_from_wakes_nobody(pairs: Pairs, selector: TurnSelector) -> None:
    ours, theirs = pairs.make()
    selector.register(ours, READ)
    fill(ours)
    selector.modify(ours, WRITE)
    theirs.shutdown(socket.SHUT_WR)
    assert selector.select(0.05) == []


def test_it_waits_as_long_as_it_is_told(selector: TurnSelector) -> None:
    since = time.monotonic()
    assert selector.select(0.05) == []
    assert time.monotonic() - since >= 0.05
    assert selector.select(-1) == []


def test_what_arrived_while_the_process_was_stopped_is_returned_with_the_end_of_the_wait(
    pairs: Pairs, selector: TurnSelector, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pairs.make()
    selector.register(ours, READ)
    theirs.send(b"pong")

    class Resumed:
        """After SIGCONT the wait's time is over, and Python repeats the interrupted call no more."""

        def __init__(self, epoll: select.epoll) -> None:
            self._epoll = epoll

        def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
            return [] if timeout else self._epoll.poll(0, maxevents)

    epoll = selector._epoll
    with monkeypatch.context() as patch:
        patch.setattr(selector, "_epoll", Resumed(epoll))
        ready = selector.select(1.0)
    assert [key.fileobj for key, _ in ready] == [ours]


def test_an_event_loop_runs_on_it() -> None:
    async def echo() -> bytes:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        heard = await reader.read()
        await asyncio.to_thread(time.sleep, 0.01)
        writer.close()
        server.close()
        return heard

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert runner.run(echo()) == b"hello\n"


def test_what_holds_the_loop_takes_no_time_on_its_clock() -> None:
    async def hold() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        since, real_since = loop.time(), time.monotonic()
        time.sleep(1.0)  # the fault
        await asyncio.sleep(0)
        return loop.time() - since, time.monotonic() - real_since

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        counted_s, real_s = runner.run(hold())
    assert counted_s <= real_s - 0.5


def test_a_timer_fires_as_much_later_as_the_loop_was_held() -> None:
    async def held() -> list[str]:
        loop, order, over = asyncio.get_running_loop(), list[str](), asyncio.Event()
        loop.call_later(0.6, order.append, "deadline")
        loop.call_later(0.7, over.set)
        time.sleep(1.0)  # the fault
        await asyncio.sleep(0)
        order.append("answer")
        await over.wait()
        return order

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert runner.run(held()) == ["answer", "deadline"]
