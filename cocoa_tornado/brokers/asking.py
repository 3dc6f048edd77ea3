"""A question to the brokers that is asked on a thread of its own, so that whoever asks may do something else meanwhile,
or wait no longer than it wants to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def ask(name: str, question: Callable[[], T]) -> Future[T]:
    """Any thread. The answer, or what the question has raised, is the future's.

    :param name: the thread's, which is a daemon: a question without an answer must not keep the process from ending
    :raises RuntimeError: the process can have no more threads
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return answer
