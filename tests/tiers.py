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
    *(f"admin/test_{name}.py" for name in ("requests", "rows", "servers", "subscribers")),
    *(f"handover/test_{name}.py" for name in ("portions", "rules", "wire")),
    *(f"relay/test_{name}.py" for name in ("memory", "redis_inbox", "wire")),
    *(f"workers/test_{name}.py" for name in ("gathering", "messages", "place")),
    *(f"asyncapi/test_{name}.py" for name in ("document", "examples")),
    "openapi/test_document.py",
    *(f"autobahn/test_{name}.py" for name in ("protocol", "table")),
    *(f"brokers/test_{name}.py" for name in ("kafka_availability", "kafka_inner_parts", "kafka_options")),
    *(f"brokers/test_{name}.py" for name in ("kafka_logs", "kafka_logs_machine", "kafka_positions", "kafka_publisher")),
    *(f"brokers/test_{name}.py" for name in ("confluent_fetching", "kafka_closing", "kafka_rest", "memory")),
    *(f"connection/test_{name}.py" for name in ("box_reader", "feed", "flusher", "keepalive", "limits", "masks")),
    *(
        f"connection/test_{name}.py"
        for name in ("delivery_machine", "outbox", "outbox_machine", "protocol", "protocol_machine", "reference")
    ),
    "connection/test_transients.py",
    "examples/test_kinds.py",
    *(f"identity/test_{name}.py" for name in ("jwks", "keys", "minting")),
    "mailboxes/test_driver.py",
    *(f"mailboxes/test_fan_out_{part}.py" for part in ("bound", "pace")),
    "mailboxes/test_redis_scripts.py",
    *(f"redis_store/test_{name}.py" for name in ("faults", "redis_url")),
    *(
        f"probe/test_{name}.py"
        for name in ("between", "credentials", "judge", "judge_speech", "recording", "report", "target")
    ),
    "probe/test_wire.py",
    "service/test_closing.py",
    *(f"speech/test_{name}.py" for name in ("engines", "memory_budget", "segmenter", "wire", "worker")),
    *(f"test_{name}.py" for name in ("asking", "conf", "counters", "hub", "layers", "metrics")),
    *(f"test_settings{part}.py" for part in ("", "_any_text", "_checks", "_options", "_sources")),
    *(f"test_{name}.py" for name in ("dependencies", "kafka_secrets", "logs_format", "logs_writer", "plain_files")),
    "test_lowest_versions.py",
    *(f"test_{name}.py" for name in ("documentation", "plain_text", "tiers", "transcriber")),
)
LOAD: Final = "bench"
SLOW: Final = (f"{LOAD}/",)
OWN_KAFKA: Final = "own_kafka"
SLOW_FIXTURES: Final = frozenset({OWN_KAFKA, "whisper_url"})

# Beginnings of the names of tests that run one after another in one process: those of bench/ load the machine, and the
# others share a broker that no other test can use.
TOGETHER: Final = (f"{LOAD}/", "test_recreated_on_kafka.py::test_a_topic_that_its_producer_has_created")

# Pure tests that take seconds each: any process takes the next one.
APART: Final = "presence/test_simulator.py"

# Only in ``make test-nightly``, beside those with the mark. In CI another engine, or another mailbox, stands for it.
NIGHTLY: Final = (
    # The pool of workers does the same with each engine, and takes seconds of a core for each of these with Whisper.
    "speech/test_contract.py::test_streams_at_once_get_their_own_words_and_none_of_another[whisper]",
    "speech/test_contract.py::test_a_stream_that_lost_its_worker_on_the_way_has_the_same_words[whisper-60000]",
    "speech/test_contract.py::test_undecodable_and_too_long_audio_are_distinguished_and_the_worker_goes_on[whisper]",
    "speech/test_contract.py::test_a_stream_that_is_cancelled_frees_its_worker[whisper]",
    # Redis is killed in tests/mailboxes/test_redis_losses.py.
    "bench/test_survival.py::test_nothing_is_lost_or_comes_twice_though_the_gateway_is_killed[redis]",
    "bench/test_soak.py::test_nor_do_they_with_kafka_and_either_client[confluent]",
)

# Not with --lowest (``make test-lowest``): what no version of a library can change, and ``make test-all`` runs with the
# newest ones. Files, folders, and beginnings of tests' names.
NOT_AT_LOWEST: Final = (
    # plain Python, or with msgspec alone, of whose decoding rules/ and mailboxes/ see enough
    *(
        "admin/",
        "rules/",
        "routing/",
        "relay/",
        "autobahn/",
        "presence/test_membership",
        "presence/test_redis_backlog.py",
        "presence/test_redis_scripts.py",
        "presence/test_rules",
        "presence/test_schedules.py",
        "presence/test_simulator.py",
        "mailboxes/test_driver.py",
        "web/test_turns.py",
    ),
    *(f"connection/test_{name}.py" for name in ("delivery_machine", "outbox_machine", "protocol_machine", "reference")),
    *(f"connection/test_{name}.py" for name in ("box_reader", "feed", "flusher", "keepalive", "outbox", "protocol")),
    *(
        f"probe/test_{name}.py"
        for name in ("between", "judge", "judge_speech", "recording", "report", "target", "wire")
    ),
    *(f"speech/test_{name}.py" for name in ("engines", "memory_budget")),
    *(f"test_{name}.py" for name in ("asking", "counters", "hub", "logs_format", "logs_writer", "plain_files")),
    *("mailboxes/test_sqlite", "brokers/test_kafka_oauth.py"),
    # the repository: its documents, imports, benchmarks, examples and the tests' own plugins
    *(
        "asyncapi/",
        "bench/",
        "examples/",
        "openapi/",
        "test_demo.py",
        "test_expected_logs.py",
        "test_layers.py",
        "test_readme.py",
    ),
    *(
        "test_dependencies.py",
        "test_documentation.py",
        "test_lowest_versions.py",
        "test_monitoring.py",
        "test_tiers.py",
    ),
    # processes: their signals, pauses, files and output, and what stands between them and their clients
    *("cli/test_serve.py", "cli/test_serve_keys.py", "cli/test_signals.py", "cli/test_streams.py"),
    *(
        "test_behind_proxies.py",
        "probe/test_through_proxies.py",
        "web/test_browser.py",
        "console/test_accessibility.py",
        "console/test_browser.py",
        "console/test_firefox.py",
        "speech/test_out_of_memory.py",
    ),
    "console/test_try.py",
    *("probe/test_audio_gateway.py", "test_previous_release.py::test_the_script"),
    # what a pool of speech workers does, whichever engine they run
    *("speech/test_contract.py", "speech/test_pool.py", "test_transcriber.py", "web/test_audio_containers.py"),
)
BUT_AT_LOWEST: Final = (
    *(f"rules/test_{name}.py" for name in ("addressing", "cursors", "decompression", "frames", "magic", "records")),
    *("rules/test_upgrade_request.py", "rules/test_upload_head.py"),
    *("speech/test_contract.py::test_known_words", "speech/test_contract.py::test_interims"),
    *(
        "cli/test_serve.py::test_with_no_option",
        "cli/test_serve.py::test_check",
        "cli/test_serve.py::test_the_json_log",
    ),
    *("cli/test_serve.py::test_the_help", "cli/test_serve.py::test_a_certificate_replaced"),
    *("cli/test_serve.py::test_sighup_takes_over", "test_behind_proxies.py::test_every_check"),
)

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

    def pytest_ignore_collect(self, collection_path: Path, config: pytest.Config) -> bool | None:
        place = collection_path.relative_to(TESTS).as_posix() if collection_path.is_relative_to(TESTS) else ""
        place += "/" if collection_path.is_dir() else ""
        has_some = place.startswith(BUT_AT_LOWEST) or any(name.startswith(place) for name in BUT_AT_LOWEST)
        return True if config.getoption("lowest") and place.startswith(NOT_AT_LOWEST) and not has_some else None

    @pytest.hookimpl(tryfirst=True)  # before the marks are compared with the option -m
    def pytest_itemcollected(self, item: pytest.Item) -> None:
        place = item.path.relative_to(TESTS).as_posix()
        if place.startswith(PURE) and item.get_closest_marker("redis") is None:
            item.add_marker(pytest.mark.pure)
        if _name(item.nodeid).startswith(NIGHTLY):
            item.add_marker(pytest.mark.nightly)
        if place.startswith(SLOW) or not SLOW_FIXTURES.isdisjoint(_fixtures(item)):
            item.add_marker(pytest.mark.slow)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Long ones first, so that the run does not end with one process busy and the others idle.

        Not where the order is random.
        """
        if config.getoption("lowest"):
            config.hook.pytest_deselected(items=[item for item in items if not is_at_lowest(item.nodeid)])
            items[:] = [item for item in items if is_at_lowest(item.nodeid)]
        if not config.pluginmanager.hasplugin("randomly"):
            items.sort(key=_rank)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> LoadScopeScheduling:
        """Any process takes the next test, or the next file of pure tests, or all of ``TOGETHER`` that begin alike.

        pytest-xdist's own groups (``--dist loadgroup``) have no effect with pytest 9.
        """
        scheduler = LoadScopeScheduling(config, log)
        scheduler._split_scope = scope
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


def _name(node_id: str) -> str:
    return node_id.removeprefix(f"{TESTS.name}/")


def scope(node_id: str) -> str:
    """Tests with the same scope run in one process, one after another."""
    name = _name(node_id)
    if name.startswith(PURE) and not name.startswith(APART):
        return name.split("::")[0]
    return next((together for together in TOGETHER if name.startswith(together)), node_id)


def is_at_lowest(node_id: str) -> bool:
    name = _name(node_id)
    return name.startswith(BUT_AT_LOWEST) or not name.startswith(NOT_AT_LOWEST)


def _rank(item: pytest.Item) -> int:
    if _name(item.nodeid).startswith(TOGETHER):
        return 0
    if OWN_KAFKA in _fixtures(item):
        return 1  # one after another, for the broker of a process ends with the last of them (tests/conftest.py)
    marks = {mark.name for mark in item.iter_markers()}
    return 2 if "slow" in marks else 3 if "kafka" in marks else 5 if "pure" in marks else 4
