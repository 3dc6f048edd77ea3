"""The Kafka broker, read by confluent-kafka (librdkafka): the parts that it is put together from."""

from __future__ import annotations

from collections.abc import Callable

from tornado.ioloop import IOLoop

from .confluent_clients import ConfluentClients
from .confluent_consumer import ConfluentConsuming
from .kafka_clients import KafkaClients
from .kafka_facade import KafkaFacade
from .kafka_options import KafkaOptions
from .port import Batch, Decoder


class ConfluentBroker(KafkaFacade):
    """What :class:`~cocoa_tornado.brokers.kafka_facade.KafkaFacade` promises, for less processor time than kafka-python
    takes to read.

    Raises BrokerError where a certificate file or an option cannot be used.
    """

    def __init__(self, options: KafkaOptions) -> None:
        self._kafka_python = KafkaClients(options)
        self._clients = ConfluentClients(options, self._kafka_python.tokens)
        super().__init__(options, self._kafka_python)

    def _reading(self, sink: Callable[[Batch], None], decode: Decoder) -> ConfluentConsuming:
        return ConfluentConsuming(
            self._options,
            self._clients,
            self._publisher,
            self._counters,
            self._availability,
            asking=self._kafka_python,
            loop=IOLoop.current(),
            sink=sink,
            decode=decode,
            sole=self._sole,
        )
