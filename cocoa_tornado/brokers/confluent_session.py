"""One consumer of confluent-kafka, from its joining of the group until it is closed.

librdkafka calls back within ``consume()`` and ``close()``; otherwise everything belongs to the consumer's thread.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Final, TypeAlias

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ..asking import ask
from .confluent_clients import CLOSE_TIMEOUT_S, ConfluentClients, Trouble
from .confluent_questions import Prober, whole
from .kafka_options import KafkaOptions

COMMIT_PATIENCE_S: Final = 3.0

OnCommit: TypeAlias = "Callable[[Session, KafkaError | None, list[TopicPartition]], None]"


class Session:
    """See the module.

    :ivar consumer: once :meth:`join` was called
    :ivar trouble: why the brokers could not be reached, as librdkafka has reported it
    :ivar prober: asks the brokers whether they still answer
    :ivar answered_at: when they last did (monotonic clock)
    """

    consumer: Consumer
    trouble: Trouble

    def __init__(self, clients: ConfluentClients, options: KafkaOptions) -> None:
        self.prober, self.answered_at = Prober(clients, options), time.monotonic()
        self._faults: list[Exception] = []  # raised by callbacks
        self._committing: Future[None] | None = None

    def join(self, clients: ConfluentClients, on_commit: OnCommit) -> None:
        """Create the consumer, without a subscription."""
        # Not a reference cycle: a gateway rarely collects those, and each would keep a consumer.
        of_session = weakref.ref(self)

        def answered(error: KafkaError | None, partitions: list[TopicPartition]) -> None:
            session = of_session()
            if session is not None:
                on_commit(session, error, partitions)

        self.consumer, self.trouble = clients.member(self.deferring(answered))

    def deferring(self, callback: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        """Wrap a callback for librdkafka. :meth:`raise_fault` raises its exceptions after the surrounding consume(). If
        they passed through librdkafka, the consumer could not be closed any more."""
        faults = self._faults

        def guarded(first: Any, second: Any) -> None:
            try:
                callback(first, second)
            except Exception as error:
                faults.append(error)

        return guarded

    def raise_fault(self) -> None:
        """Raise the first exception of a callback, if there is one."""
        if self._faults:
            raise self._faults[0]

    def commit_and_wait(self, offsets: list[TopicPartition]) -> None:
        """Commit with a timeout, which librdkafka lacks. Not in a callback: it would wait for the callback to
        return. Raises KafkaException, also without an answer."""
        if self._committing is not None and not self._committing.done():
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

        def commit() -> None:
            whole(self.consumer.commit(offsets=offsets, asynchronous=False) or [])

        try:
            self._committing = ask("cocoa-kafka-commit", commit)
            self._committing.result(COMMIT_PATIENCE_S)
        except TimeoutError as error:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from error
        except RuntimeError as error:  # closed meanwhile, after its timeout; or no thread can be started
            raise KafkaException(KafkaError(KafkaError._STATE)) from error

    def close(self) -> None:
        """Leave the group, with a timeout; never raises. If librdkafka still hangs, it may call back later."""
        consumer, prober, committing = self.consumer, self.prober, self._committing
        self._committing = None

        def close() -> None:
            if committing is not None:
                wait([committing])  # librdkafka must not be closed during a request
            with contextlib.suppress(Exception):  # it is being discarded
                consumer.close()
            prober.close()

        try:
            ask("cocoa-kafka-closing", close).result(CLOSE_TIMEOUT_S)
        except TimeoutError:
            pass
        except RuntimeError:  # no thread can be started
            close()
