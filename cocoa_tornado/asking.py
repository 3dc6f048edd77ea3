"""Runs a blocking call on a thread of its own, so that the caller can do something else meanwhile, or limit its wait.

The thread is a daemon. Executors of the standard library are joined at the end of the process, so a call that never
returns would block the exit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def ask(name: str, question: Callable[[], T]) -> Future[T]:
    """Start the call, from any thread. The future gets its result or its exception.

    :param name: the thread's
    :raises RuntimeError: the process can have no more threads
    """
    answer: Future[T] = Future()
    answer.set_running_or_notify_cancel()  # it can't be cancelled from here on, so set_result never fails

    def run() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return answer
