"""Assembles the Kafka broker that reads with kafka-python."""

from __future__ import annotations

from .kafka_clients import KafkaClients
from .kafka_consumer import KafkaConsuming
from .kafka_facade import KafkaFacade
from .kafka_options import KafkaOptions
from .kafka_reading import ReadingContext


class KafkaBroker(KafkaFacade):
    """A :class:`~cocoa_tornado.brokers.kafka_facade.KafkaFacade` in pure Python.

    Raises BrokerError if a certificate file is invalid.
    """

    def __init__(self, options: KafkaOptions) -> None:
        self._clients = KafkaClients(options)
        super().__init__(options, self._clients)

    def _reading(self, context: ReadingContext) -> KafkaConsuming:
        return KafkaConsuming(context, self._clients)
