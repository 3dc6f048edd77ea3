"""Questions that have a thread of their own."""

from __future__ import annotations

import threading

import pytest

from cocoa_tornado.asking import ask


def test_the_answer_is_the_futures_and_so_is_an_error_of_any_kind() -> None:
    assert ask("here", lambda: 42).result(10) == 42

    def fail() -> None:
        raise SystemExit("no answer")

    assert isinstance(ask("there", fail).exception(10), SystemExit)


def test_it_is_asked_on_a_daemons_thread_of_that_name() -> None:
    thread = ask("the-question", threading.current_thread).result(10)
    assert (thread.name, thread.daemon) == ("the-question", True)


def test_where_no_thread_is_to_be_had_the_asker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        ask("never", lambda: 42)
