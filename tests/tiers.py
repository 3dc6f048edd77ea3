"""Which tests run when: ``make test-fast`` the pure ones, ``make test`` all but the slow ones, ``make test-all`` all.

A pure test starts no process and opens no connection, and fails if it does. A slow one stops or freezes Kafka, loads
the machine for many seconds, runs Whisper, or tests nothing but a benchmark; where its folder or its fixture does not
show that, it has the mark.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling

TESTS: Final = Path(__file__).parent

# Files, and folders with everything below them, except what needs Redis.
PURE: Final = (
    "routing/",
    "rules/",
    "presence/",
    "relay/",
    *(f"asyncapi/test_{name}.py" for name in ("document", "examples")),
    *(f"autobahn/test_{name}.py" for name in ("protocol", "table")),
    *(f"brokers/test_{name}.py" for name in ("kafka_availability", "kafka_inner_parts", "kafka_options")),
    *(f"brokers/test_{name}.py" for name in ("kafka_logs", "kafka_logs_machine", "kafka_positions", "kafka_publisher")),
    *(f"brokers/test_{name}.py" for name in ("kafka_closing", "kafka_rest", "memory")),
    *(f"connection/test_{name}.py" for name in ("box_reader", "feed", "flusher", "keepalive", "limits", "masks")),
    *(
        f"connection/test_{name}.py"
        for name in ("delivery_machine", "outbox", "outbox_machine", "protocol", "protocol_machine", "reference")
    ),
    "examples/test_kinds.py",
    *(f"identity/test_{name}.py" for name in ("keys", "minting")),
    "mailboxes/test_driver.py",
    "mailboxes/test_redis_scripts.py",
    *(f"redis_store/test_{name}.py" for name in ("faults", "redis_url")),
    *(
        f"probe/test_{name}.py"
        for name in ("between", "credentials", "judge", "judge_speech", "recording", "report", "target")
    ),
    "probe/test_wire.py",
    *(f"speech/test_{name}.py" for name in ("engines", "memory_budget", "segmenter", "wire", "worker")),
    *(f"test_{name}.py" for name in ("asking", "conf", "counters", "hub", "layers", "metrics")),
    *(f"test_settings{part}.py" for part in ("", "_any_text", "_checks", "_options", "_sources")),
    *(f"test_{name}.py" for name in ("dependencies", "kafka_secrets", "logs_format", "logs_writer", "plain_files")),
    *(f"test_{name}.py" for name in ("documentation", "plain_text", "transcriber")),
)
LOAD: Final = "bench"
SLOW: Final = (f"{LOAD}/",)
SLOW_FIXTURES: Final = frozenset({"own_kafka", "whisper_url"})

_FORBIDDEN: Final = frozenset({"socket.bind", "socket.connect", "subprocess.Popen", "os.posix_spawn", "os.fork"})


class Tiers:
    """The plugin; ``conftest.py`` registers it."""

    def __init__(self) -> None:
        self._is_pure = False
        self._events: list[str] = []

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "pure: starts no process and opens no connection (tests/tiers.py)")
        config.addinivalue_line("markers", "nightly: only in make test-nightly")
        config.addinivalue_line("markers", "slow: only in make test-all (tests/tiers.py)")
        sys.addaudithook(self._on_audit)

    @pytest.hookimpl(tryfirst=True)  # before the marks are compared with the option -m
    def pytest_itemcollected(self, item: pytest.Item) -> None:
        place = item.path.relative_to(TESTS).as_posix()
        if place.startswith(PURE) and item.get_closest_marker("redis") is None:
            item.add_marker(pytest.mark.pure)
        if place.startswith(SLOW) or not SLOW_FIXTURES.isdisjoint(_fixtures(item)):
            item.add_marker(pytest.mark.slow)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Long ones first, so that the run does not end with one process busy and the others idle.

        Not where the order is random.
        """
        if not config.pluginmanager.hasplugin("randomly"):
            items.sort(key=_rank)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> LoadScopeScheduling:
        """Any process takes the next test, but those that load the machine run in one, one after another.

        pytest-xdist's own groups (``--dist loadgroup``) have no effect with pytest 9.
        """
        scheduler = LoadScopeScheduling(config, log)
        scheduler._split_scope = lambda nodeid: LOAD if f"/{LOAD}/" in nodeid else nodeid
        return scheduler

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._is_pure, self._events = item.get_closest_marker("pure") is not None, []
        try:
            return (yield)
        finally:
            self._is_pure = False

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_teardown(self) -> Generator[None, object, object]:
        result = yield
        if self._events:  # what is tested may have caught the error
            pytest.fail(f"a pure test caused {', '.join(self._events)}: see tests/tiers.py", pytrace=False)
        return result

    def _on_audit(self, event: str, _: tuple[object, ...]) -> None:
        """A permanent audit hook of the interpreter."""
        if self._is_pure and event in _FORBIDDEN:
            self._events.append(event)
            raise AssertionError(f"a pure test caused {event}: see tests/tiers.py")


def _fixtures(item: pytest.Item) -> Sequence[str]:
    """The names of the fixtures that a test uses, directly or not."""
    return getattr(item, "fixturenames", ())


def _rank(item: pytest.Item) -> int:
    if item.path.is_relative_to(TESTS / LOAD):
        return 0
    marks = {mark.name for mark in item.iter_markers()}
    return 1 if "slow" in marks else 2 if "kafka" in marks else 4 if "pure" in marks else 3
