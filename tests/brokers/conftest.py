from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from testing.kafka_server import KafkaServer

    from .bench import KafkaStand

LINGER_S = 10.0  # a thread that is trying to connect when its broker is closed ends by itself, some seconds later


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    """No thread of an adapter outlives its test: it would log into the next one, and so does kafka-python's.

    Closing may: librdkafka hangs for good in one of some hundred runs in which its brokers have gone. The adapter then
    goes on without it.
    """
    before = set(threading.enumerate())  # one that hangs fails one test
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("cocoa-kafka-") and thread not in before:
            thread.join(LINGER_S)
            assert not thread.is_alive() or thread.name == "cocoa-kafka-closing", f"{thread.name} does not end"


@pytest.fixture(autouse=True)
def slow_to_share_out(request: pytest.FixtureRequest) -> None:
    """Tansu may take longer to share partitions out than the adapter waits before it says so."""
    from testing.kafka_server import which_broker  # kafka-python is imported where the filters of warnings are in force

    from .bench import MAYBE_AWAY

    if which_broker() == "tansu":
        request.node.add_marker(MAYBE_AWAY)


@pytest.fixture(params=["kafka", "confluent"])
def stand(request: pytest.FixtureRequest, kafka: KafkaServer) -> KafkaStand:
    """The adapter by either library, on the shared broker."""
    from .bench import kafka_stand  # as above

    return kafka_stand(request.param, kafka)
