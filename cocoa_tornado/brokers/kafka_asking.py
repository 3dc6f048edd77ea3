"""Background requests to the brokers, with kafka-python on separate threads, for either client library.

The polling thread must not wait for them, and a consumer's connection answers only after a fetch that waits for
records.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

from ..asking import ask
from .kafka_clients import KafkaClients
from .kafka_connections import KafkaClient

T = TypeVar("T")


class Inquiry(Generic[T]):
    """Repeats one request, one at a time, with a client that is kept until :meth:`rest`. Used by one thread; the
    requests run on threads of their own.

    :param name: of the threads
    :param question: called with an admin client of kafka-python; its result or exception is the answer
    """

    def __init__(self, clients: KafkaClients, name: str, question: Callable[[KafkaClient], T]) -> None:
        self._clients, self._name, self._question = clients, name, question
        self._asked: Future[T] | None = None
        self._lock = threading.Lock()  # guards the client
        self._admin: KafkaClient = None

    def ask(self) -> Future[T]:
        """Start a request, or return the pending one. Raises RuntimeError if no thread can be started."""
        if self._asked is None:
            self._asked = ask(self._name, self._answer)
        return self._asked

    def is_asking(self) -> bool:
        """True while an answer is pending or can be taken."""
        return self._asked is not None

    def take_answer(self) -> Future[T] | None:
        """Return the answer once: the result, or the exception."""
        if self._asked is None or not self._asked.done():
            return None
        asked, self._asked = self._asked, None
        return asked

    def forget(self) -> None:
        """Discard an answer that is pending or was not taken."""
        self._asked = None

    def rest(self) -> None:
        """Close the connections once the current request is answered; the next one opens them again."""
        asked, self._asked = self._asked, None
        if asked is None and self._admin is None:
            return

        def close() -> None:
            if asked is not None:
                wait([asked])
            with self._lock:
                self._close()

        with contextlib.suppress(RuntimeError):  # no thread: they stay open
            ask(self._name, close)

    def _answer(self) -> T:
        with self._lock:
            try:
                if self._admin is None:
                    self._admin = self._clients.admin()
                return self._question(self._admin)
            except BaseException as error:
                reason = error if self._admin is None else self._clients.reason(self._admin, error)
                self._close()  # it caches the coordinator and the leaders, which may have changed
                if reason is error:
                    raise
                raise reason from error

    def _close(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(Exception):  # the client is discarded in any case
                admin.close()
