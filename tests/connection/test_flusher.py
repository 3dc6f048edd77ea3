"""The process's one timer: no connection's work depends on another connection."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest

from cocoa_tornado.connection.flusher import Flushed, Flusher, Housekeeping
from cocoa_tornado.connection.intake import IntakeGate
from cocoa_tornado.connection.keepalive import ExpiryCalendar, PingWheel
from cocoa_tornado.counters import Counters
from cocoa_tornado.rules.close_codes import CloseReason


class Connection:
    """Records its calls, and fails in one of them."""

    def __init__(self, fails_to: str = "") -> None:
        self.fails_to, self.done = fails_to, ""
        self.awaiting_pong = self.flush_pending = False
        self.due_tick = 0

    def _do(self, step: str) -> None:
        if step == self.fails_to:
            raise RuntimeError("planned")
        self.done = step

    def ping(self) -> None:
        self._do("ping")

    def expire(self) -> None:
        self._do("expire")

    def end(self, reason: CloseReason, keep_queued: bool = False) -> None:
        self._do("end")

    def check_socket(self, now: float) -> None:
        self._do("check_socket")

    def flush(self) -> None:
        self._do("flush")

    def cut(self) -> None:
        self.done = "cut"

    def pong_may_be_late(self) -> bool:
        return False

    def who(self) -> dict[str, object]:
        return {"device_id": self.fails_to}


def test_the_timer_runs_half_as_often_while_there_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Mock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    wheel, calendar = PingWheel[Flushed](30.0, 30.0, 0.0), ExpiryCalendar[Flushed]()
    intake = IntakeGate(1000, lambda: 0.0, lambda: 0)
    flusher = Flusher(loop, lambda: 0.0)
    housekeeping = Housekeeping(wheel, calendar, flusher, Counters(), lambda: 0.0, lambda: 0.0, intake)
    connection = Connection()
    housekeeping.start()
    wheel.add(connection, 1)
    housekeeping.start()
    wheel.remove(connection)
    housekeeping.start()
    assert [call.args[0] for call in loop.call_later.call_args_list] == [1.0, 0.5, 1.0]


@pytest.mark.logs("cocoa.web", "^connection failed$")
@pytest.mark.parametrize("step", ["ping", "expire", "end", "check_socket"])
def test_a_connection_that_fails_is_cut_and_the_others_get_what_is_due(step: str) -> None:
    loop, now = Mock(), 0.0
    wheel, calendar = PingWheel[Flushed](30.0, 30.0, now), ExpiryCalendar[Flushed]()
    flusher, counters = Flusher(loop, lambda: now), Counters()
    intake = IntakeGate(1000, lambda: now, lambda: 0)
    housekeeping = Housekeeping(wheel, calendar, flusher, counters, lambda: now, lambda: now, intake)
    before, failing, after, at_another_step = (Connection(), Connection(step), Connection(), Connection())
    for connection in (before, failing, after):
        if step in ("ping", "expire"):
            wheel.add(connection, 1)
        elif step == "end":
            calendar.add(connection, 50.0)
        else:
            flusher.watch(connection)
    if step == "expire":
        housekeeping.look(30.0)
    flusher.watch(at_another_step)
    now = 61.0
    housekeeping.look(now)
    assert [connection.done for connection in (before, failing, after)] == [step, "cut", step]
    assert at_another_step.done == "check_socket"
