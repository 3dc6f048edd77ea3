from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

LINGER_S = 10.0  # a thread that is trying to connect when its broker is closed ends by itself, some seconds later


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    """No thread of an adapter outlives its test: it would log into the next one, and so does kafka-python's."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("cocoa-kafka-"):
            thread.join(LINGER_S)
            assert not thread.is_alive(), f"{thread.name} does not end"
