"""Questions to the brokers that nothing waits for: asked by kafka-python, on threads of their own, with either library.

The thread that polls must not wait for them, and a consumer's own connection answers behind a fetch that waits for
records.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

from ..asking import ask
from .kafka_clients import KafkaClient, KafkaClients

T = TypeVar("T")


class Inquiry(Generic[T]):
    """Asks one question again and again, once at a time, by a client that is kept until :meth:`rest`. Used by one
    thread; the questions have threads of their own.

    :param name: the threads'
    :param question: is given an admin client of kafka-python; what it returns or raises is the answer
    """

    def __init__(self, clients: KafkaClients, name: str, question: Callable[[KafkaClient], T]) -> None:
        self._clients, self._name, self._question = clients, name, question
        self._asked: Future[T] | None = None
        self._lock = threading.Lock()  # of the client
        self._admin: KafkaClient = None

    def ask(self) -> Future[T]:
        """Ask now, or wait for the answer that is to come. Raises RuntimeError where no thread is to be had."""
        if self._asked is None:
            self._asked = ask(self._name, self._answer)
        return self._asked

    def is_asking(self) -> bool:
        """Whether there is an answer to come, or to be taken."""
        return self._asked is not None

    def take_answer(self) -> Future[T] | None:
        """What has been answered, once: the answer, or what the question has raised."""
        if self._asked is None or not self._asked.done():
            return None
        asked, self._asked = self._asked, None
        return asked

    def forget(self) -> None:
        """An answer that is to come, or to be taken, is of no use any more."""
        self._asked = None

    def rest(self) -> None:
        """Close the connections, once the question under way has its answer; the next one opens them again."""
        asked, self._asked = self._asked, None
        if asked is None and self._admin is None:
            return

        def close() -> None:
            if asked is not None:
                wait([asked])
            with self._lock:
                self._close()

        with contextlib.suppress(RuntimeError):  # no thread is to be had: they stay open
            ask(self._name, close)

    def _answer(self) -> T:
        with self._lock:
            try:
                if self._admin is None:
                    self._admin = self._clients.admin()
                return self._question(self._admin)
            except BaseException as error:
                reason = error if self._admin is None else self._clients.reason(self._admin, error)
                self._close()  # it remembers the coordinator and the leaders, which may be others by now
                if reason is error:
                    raise
                raise reason from error

    def _close(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(Exception):  # the client is dropped in any case
                admin.close()
