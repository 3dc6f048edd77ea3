"""The parent with real processes: workers that speak its protocol, without a gateway (``stand_in.py``)."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from cocoa_tornado.rules.supervision import End
from cocoa_tornado.systemd import Notifier
from cocoa_tornado.workers.messages import Reload, encode
from cocoa_tornado.workers.parent import Child, Parent

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class Running:
    """A parent in a thread of this process, and what its workers have noted."""

    def __init__(self, folder: Path, count: int = 2, notifier: Notifier | None = None) -> None:
        self.folder = folder
        self._notifier = Notifier({}) if notifier is None else notifier
        self.served, self.reloaded = threading.Event(), threading.Event()
        self.parent = Parent(
            [sys.executable, "-m", "tests.workers.stand_in", str(folder)],
            count,
            "here",
            1234,
            os.environ | {"PYTHONPATH": str(ROOT)},
            5.0,
            self._notifier,
            self.served.set,
            self.reloaded.set,
        )
        self.status: int | None = None
        self._thread = threading.Thread(target=self._run, name="parent")
        self._thread.start()

    def _run(self) -> None:
        self.status = self.parent.run()

    def ends(self) -> int | None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.status

    def close(self) -> None:
        self.parent.stop()
        self._thread.join(PATIENCE_S)
        self._notifier.close()
        self.parent.force()
        self._thread.join()

    def noted(self, what: str) -> list[list[str]]:
        path = self.folder / what
        return [line.split() for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def pid(self, number: int) -> int:
        """The latest process of this number."""
        return next(int(pid) for name, _, pid in reversed(self.noted("starts")) if name == f"here/{number}")

    def is_up(self, *pids: int) -> bool:
        """Whether other processes than these serve, two of them."""
        return len(self.parent._supervisor.up) == 2 and not {self.pid(1), self.pid(2)} & set(pids)

    def ask(self, number: int) -> str:
        """What this worker answers for all."""
        answer = self.folder / f"answer-{number}"
        answer.unlink(missing_ok=True)
        (self.folder / f"ask-{number}").touch()
        eventually(answer.exists)
        return answer.read_text(encoding="utf-8")


Run = Callable[..., Running]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    running: list[Running] = []

    def start(serves: bool = True, **options: object) -> Running:
        one = Running(tmp_path, **options)  # type: ignore[arg-type]  # passed on
        running.append(one)
        if serves:
            assert one.served.wait(PATIENCE_S)
        return one

    yield start
    for one in running:
        one.close()


def test_workers_get_their_names_and_the_port_and_a_stop_drains_them(run: Run) -> None:
    running = run()
    assert [start[:2] for start in running.noted("starts")] == [["here/1", "1234"], ["here/2", "1234"]]
    running.parent.stop()
    assert running.ends() == 0
    assert sorted(name for name, _, _ in running.noted("drains")) == ["here/1", "here/2"]


@pytest.mark.logs("cocoa.workers", "worker died")
def test_a_killed_worker_is_replaced_and_whichever_is_asked_answers_for_all(run: Run) -> None:
    running = run()
    for asked in (1, 2):
        ready, _, metrics = running.ask(asked).partition("\n")
        assert ready == "[] {'ok': True, 'state': 'ready'}"
        assert "\ndone 3.0\n" in metrics
        assert "\ncocoa_workers_missing 0.0\n" in metrics
    (running.folder / "unready-2").touch()
    assert running.ask(1).startswith("['broker'] ")
    (running.folder / "unready-2").unlink()

    first = running.pid(2)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: running.is_up(first))
    metrics = running.ask(1)
    assert 'cocoa_worker_restarts_total{reason="died"} 1.0' in metrics
    # What the killed worker had counted stays in the sum.
    assert "\ndone 5.0\n" in metrics


def test_a_worker_that_is_drained_by_hand_is_replaced_and_has_not_died(run: Run) -> None:
    running = run()
    first = running.pid(2)
    os.kill(first, signal.SIGTERM)
    eventually(lambda: running.is_up(first))
    metrics = running.ask(1)
    assert 'cocoa_worker_restarts_total{reason="died"} 0.0' in metrics
    assert 'cocoa_worker_restarts_total{reason="drained"} 1.0' in metrics


@pytest.mark.logs("cocoa.workers", "worker (killed|died)")
def test_a_stopped_worker_is_named_and_then_killed_and_replaced(run: Run) -> None:
    running = run()
    hung = running.pid(2)
    # Its successor does not start at once, so that it is still missing however slow this machine is.
    failure = running.folder / "fail-2"
    failure.write_text("1", encoding="utf-8")
    os.kill(hung, signal.SIGSTOP)
    ready, _, metrics = running.ask(1).partition("\n")
    assert "'missing': ['here/2']" in ready
    assert ready.startswith("['workers'] ")
    assert "\ncocoa_workers_missing 1.0\n" in metrics
    failure.unlink()
    eventually(lambda: running.is_up(hung))
    assert 'reason="hung"} 1.0' in running.ask(1)


@pytest.mark.parametrize("status", [1, 2])
def test_a_failure_at_the_first_start_is_the_status_of_the_parent(tmp_path: Path, run: Run, status: int) -> None:
    (tmp_path / "fail-1").write_text(str(status), encoding="utf-8")
    running = run(serves=False)
    assert running.ends() == status
    assert len(running.noted("starts")) == 1


def test_a_second_stop_kills_workers_that_do_not_drain(
    tmp_path: Path, run: Run, request: pytest.FixtureRequest
) -> None:
    request.node.add_marker(pytest.mark.logs("cocoa.workers", "worker killed"))
    (tmp_path / "ignore-drain").touch()
    running = run()
    running.parent.stop()
    running.parent.force()
    assert running.ends() == 1


@pytest.mark.logs("cocoa.workers", "worker died", optional=True)
def test_workers_whose_parent_ends_drain(run: Run) -> None:
    running = run()
    # As the kernel does at the parent's end.
    for child in running.parent._children.values():
        child.sock.shutdown(socket.SHUT_RDWR)
    eventually(lambda: len(running.noted("drains")) == 2)
    running.parent.stop()
    running.ends()


def test_a_reload_reaches_all_and_systemd_learns_when_it_is_complete(run: Run, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE_S)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"}
        running = run(notifier=Notifier(environ))
        assert next_state(systemd) == "READY=1"
        running.parent.reload()
        assert next_state(systemd) == "RELOADING=1"
        assert next_state(systemd) == "READY=1"
        assert sorted(name for name, _, _ in running.noted("reloads")) == ["here/1", "here/2"]
        assert running.reloaded.is_set()
        running.parent.stop()
        assert next_state(systemd) == "STOPPING=1"
        running.ends()


def next_state(systemd: socket.socket) -> str:
    """The next state that systemd is notified of, except signs of life; those must have come before."""
    while True:
        first = systemd.recv(4096).decode().splitlines()[0]
        if not first.startswith(("WATCHDOG=1", "STATUS=")):
            return first


@pytest.mark.logs("cocoa.workers", "reload failed")
def test_a_reload_that_fails_in_the_parent_reaches_the_workers_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("can't start new thread")

    parent = Parent(["worker"], 1, "here", 1234, {}, 5.0, Notifier({}), on_reload=fail)
    ours, theirs = socket.socketpair()
    child = Child(0, cast(Any, None), ours)
    parent._children[0] = child
    parent._selector.register(ours, selectors.EVENT_READ, child)
    monkeypatch.setattr(parent._supervisor, "actions", lambda now: [End(0)])
    parent.reload()
    assert parent.run() == 0
    with theirs:
        assert theirs.recv(1000) == encode(Reload())
    assert [record.__dict__["error"] for record in caplog.records] == ["can't start new thread"]
