"""Fixtures and markers for every test. The broker is started only when a test requests it."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from . import profiles
from .expected_logs import ExpectedLogs
from .shared_folder import SHARED_FOLDER, SharedFolder
from .tiers import OWN_KAFKA, Tiers

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

    from testing.kafka_server import KafkaServer, TansuServer
    from testing.redis_server import RedisServer

    from .harness import Harness, Neighbors

profiles.register()

_KAFKA = pytest.StashKey[object]()
_OWN_KAFKA = pytest.StashKey["KafkaServer | TansuServer"]()
KAFKA_PYTHON_ON_3_11 = "ignore:(read|open)_text is deprecated:DeprecationWarning"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lowest", action="store_true", help="only what a library's version may change (tests/tiers.py)")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ExpectedLogs())
    config.pluginmanager.register(SharedFolder())
    config.pluginmanager.register(Tiers())
    config.addinivalue_line("markers", "kafka: needs a Kafka broker, which the test session starts (Java and Maven)")
    config.addinivalue_line("markers", "apache: needs Apache Kafka; not run against the stand-in for it, Tansu")
    config.addinivalue_line("markers", "redis: needs redis-server, which the test session starts")
    # It warns of each of its tasks that takes longer than 0.1 s: a matter of the machine, not of what is tested.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
    # kafka-python says this while it is being imported, to nobody who could change it. For the same reason it is
    # imported below, where the filters are in force, and not above.
    config.addinivalue_line("filterwarnings", KAFKA_PYTHON_ON_3_11)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For ``-n auto``: more processes than cores, for the tests of servers mostly wait."""
    return min(2 * (os.cpu_count() or 1), 8)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Kill this process's own broker after the last test that uses it: an idle one takes 3 to 5 % of a core.

    In random order it remains, as any of the next tests may use it.
    """
    server = item.config.stash.get(_OWN_KAFKA, None)
    if server is None or OWN_KAFKA in getattr(item, "fixturenames", ()):
        return
    if not item.config.pluginmanager.hasplugin("randomly"):
        server.kill()


def pytest_report_header() -> str:
    with warnings.catch_warnings():
        # Here pytest's own filters are not in force yet, but Python's are, and they make an error of this one.
        warnings.simplefilter("ignore", DeprecationWarning)
        from testing.kafka_server import describe_broker

    return f"kafka broker: {describe_broker()}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests that the available broker does not support."""
    from testing.kafka_server import which_broker

    if which_broker() == "apache":
        return
    left_out = [item for item in items if item.get_closest_marker("apache")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("apache")]


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def neighbors(request: pytest.FixtureRequest) -> Iterator[Neighbors]:
    """For gateways of one process that hold each other's devices: in memory, and in Redis."""
    from .harness import Neighbors

    made = Neighbors()
    if request.param == "redis":
        from .redis_neighbors import RedisNeighbors

        made = RedisNeighbors(request.getfixturevalue("redis_server"))
    yield made
    made.close()


@pytest.fixture
def two_gateways(io_loop: IOLoop, neighbors: Neighbors) -> Iterator[tuple[Harness, Harness]]:
    """Two gateways in one process, with real sockets, over relay ``memory://``; each has a broker of its own.

    A challenge outlasts every test that does not shorten it.
    """
    from .harness import Harness

    async def start() -> Harness:
        return await Harness.start(neighbors=neighbors, duplicate_challenge_s=30.0)

    a, b = io_loop.run_sync(start), io_loop.run_sync(start)
    yield a, b
    io_loop.run_sync(a.stop)
    io_loop.run_sync(b.stop)


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> KafkaServer | TansuServer:
    """A broker for the whole run, started by the first process that needs it and killed at the end (``shared_folder``).

    Tests keep apart by their topics' names.
    """
    from testing.kafka_server import make_broker
    from testing.locking import alone

    folder = request.config.stash[SHARED_FOLDER]
    with alone(folder / "kafka.lock"):
        server = make_broker(folder / "kafka")
        if not server.is_started():
            _start_quietly(server)
    # Keep a reference, so that Popen is not collected while other processes use the broker.
    request.config.stash[_KAFKA] = server
    return server


@pytest.fixture(scope="session")
def _restartable_kafka(request: pytest.FixtureRequest) -> Iterator[KafkaServer | TansuServer]:
    from testing.kafka_server import make_broker

    server = request.config.stash[_OWN_KAFKA] = make_broker(_server_folder(request, "own-kafka-"))
    yield server
    server.close()


@pytest.fixture
def own_kafka(
    _restartable_kafka: KafkaServer | TansuServer, request: pytest.FixtureRequest
) -> KafkaServer | TansuServer:
    """A running broker of this process, which a test may stop, kill or freeze, and leave in that state.

    The tests of one process share it, and keep apart by their topics' names. While it is away, a test's own clients
    may log what kafka-python has to say, which no test promises.
    """
    request.node.add_marker(pytest.mark.logs("kafka", "", optional=True))
    if not _restartable_kafka.is_answering():
        _restartable_kafka.kill()
        _start_quietly(_restartable_kafka)
    return _restartable_kafka


@pytest.fixture
def absent_kafka(tmp_path: Path) -> Iterator[KafkaServer | TansuServer]:
    """A broker that is never started: its addresses refuse every connection."""
    from testing.kafka_server import make_broker

    server = make_broker(tmp_path / "kafka")
    yield server
    server.close()


def _start_quietly(server: KafkaServer | TansuServer) -> None:
    """Asked before it is ready, a broker does not answer as it should, and kafka-python would log it."""
    kafka_python = logging.getLogger("kafka")
    kafka_python.setLevel(logging.CRITICAL + 1)
    server.start()
    kafka_python.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A Redis for this process. Its tests come one after the other, and leave it empty."""
    server = _make_redis(request)
    server.start()
    yield server
    server.close()


@pytest.fixture
def own_redis(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A Redis for one test, which may stop it and start it again. It is not started yet."""
    server = _make_redis(request)
    yield server
    server.close()


def _make_redis(request: pytest.FixtureRequest) -> RedisServer:
    from testing.redis_server import RedisServer, why_not

    if why_not():
        pytest.skip(why_not())
    return RedisServer(_server_folder(request, "redis-"))


def _server_folder(request: pytest.FixtureRequest, prefix: str) -> Path:
    """A folder where a server is found at the end of the run, should this process crash."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=request.config.stash[SHARED_FOLDER]))
