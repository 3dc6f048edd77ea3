"""A question to the brokers that nobody waits for: it is asked on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def ask(name: str, question: Callable[[], T]) -> Future[T]:
    """Any thread. The answer, or what the question has raised, is the future's.

    :param name: the thread's, which is a daemon: a question without an answer must not keep the process from ending
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(question())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return answer
