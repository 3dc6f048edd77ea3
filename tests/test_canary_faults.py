"""What canaries of several servers and workers count while Kafka, Redis or a server stands still: what is true, and no
more. Each message is sent 200 ms after the one before.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cocoa_tornado.rules.canaries import DEADLINE_S
from testing.kafka_admin import create_topic, recreate_topic
from testing.kafka_server import KafkaServer
from testing.redis_server import RedisServer

from .test_neighboring_releases import NEW, Server, await_each_other, eventually

pytestmark = [pytest.mark.kafka, pytest.mark.apache, pytest.mark.redis, pytest.mark.nightly]

PARTITIONS = 4
PROCESSES, CANARIES = 3, 6
SHORT_S, LONG_S = 30.0, 90.0
"""Less than a minute, in which a message must arrive, and more."""


class Counts(NamedTuple):
    """What the canaries of all servers have counted."""

    sent: int
    in_time: int
    lost: int
    late: int
    leaked: int

    @property
    def missing(self) -> int:
        return self.lost - self.late


class Fleet:
    """Two servers, one of them with two workers, on a Kafka and a Redis of their own.

    :ivar one: its wall clock can be set
    """

    def __init__(self, folder: Path) -> None:
        self.kafka, self.redis = KafkaServer(folder / "kafka"), RedisServer(folder / "redis")
        self.kafka.start()
        self.redis.start()
        self.topic = name = f"faults-{uuid.uuid4().hex[:8]}"
        create_topic(self.kafka.bootstrap, name, PARTITIONS)
        options = ["--broker", f"kafka://{self.kafka.bootstrap}", "--presence", self.redis.url]
        options += ["--mailbox", self.redis.url, "--kafka-results-topic", name, "--kafka-group", name]
        options += ["--kafka-partitions", "1", "--kafka-replication", "1"]
        self._offset = folder / "offset"
        self.set_clock(0)
        program = [sys.executable, "-m", "bench.clock_set_back", str(self._offset)]
        self.one = Server(folder / "one", Path(), "one", options, program)
        self.workers = Server(folder / "workers", Path(), "workers", [*options, "--workers", "2"])
        self.servers = self.one, self.workers
        for server in self.servers:
            server.start(NEW)
        for server in self.servers:
            server.await_ready()
        await_each_other(*self.servers)
        self.recover()

    def set_clock(self, offset_s: float) -> None:
        self._offset.write_text(str(offset_s), encoding="utf-8")

    def recover(self) -> None:
        """Wait until each server is ready and 20 more messages have arrived at its canaries."""
        for server in self.servers:
            server.await_ready()
        for server in self.servers:
            goal = server.metric("cocoa_canary_seconds_count") + 20
            eventually(lambda: is_sound(server) and server.metric("cocoa_canary_seconds_count") >= goal)  # noqa: B023

    def counts(self) -> Counts:
        names = ("sent_total", "seconds_count", "lost_total", "late_total", "leaked_total")
        return Counts(*(sum(int(server.metric(f"cocoa_canary_{name}")) for server in self.servers) for name in names))

    def lines(self, event: str) -> int:
        return sum(len(re.findall(rf"\] {event} ", server.log)) for server in self.servers)

    def worker(self, number: int) -> int:
        """The latest process of this number."""
        return int(re.findall(rf"worker started .*worker=workers/{number} pid=(\d+)", self.workers.log)[-1])

    def end(self) -> None:
        for server in self.servers:
            server.end()
        self.kafka.close()
        self.redis.close()


def is_sound(server: Server) -> bool:
    try:
        return bool(json.loads(server.get("/api/v1/ready"))["parts"]["canary"]["state"] == "ready")
    except OSError:
        return False  # 503


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    yield fleet
    fleet.end()


def pause(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


PAUSED: dict[str, Callable[[Fleet], int]] = {
    "kafka": lambda fleet: fleet.kafka.pid,
    "redis": lambda fleet: fleet.redis.pid,
    "server": lambda fleet: fleet.one.pid,
}


@pytest.mark.parametrize("what", PAUSED)
def test_after_a_short_pause_none_is_lost(fleet: Fleet, what: str) -> None:
    before = fleet.counts()
    for seconds in (5.0, SHORT_S):
        pause(PAUSED[what](fleet), seconds)
        fleet.recover()
    after = fleet.counts()
    assert (after.lost, after.late, after.leaked) == (before.lost, before.late, 0), (before, after)


@pytest.mark.parametrize("what", PAUSED)
def test_after_a_long_pause_all_that_are_lost_arrive_late_and_the_log_says_so_once(fleet: Fleet, what: str) -> None:
    before, lines = fleet.counts(), fleet.lines("canary lost")
    pause(PAUSED[what](fleet), LONG_S)
    fleet.recover()
    time.sleep(DEADLINE_S)  # until nothing is awaited that was sent during the pause
    fleet.recover()
    after = fleet.counts()
    print(f"{what} paused for {LONG_S:g} s: before {before}, after {after}")
    # The server that was paused had read messages whose ttl is 0, and could not forward them any more.
    in_hand = CANARIES if what == "server" else 0
    assert before.missing <= after.missing <= before.missing + in_hand, (before, after)
    assert after.leaked == 0
    assert fleet.lines("canary lost") - lines <= PROCESSES


def test_after_a_crash_a_hang_or_a_restart_of_a_worker_none_is_lost(fleet: Fleet) -> None:
    before = fleet.counts()
    for how in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
        ended = fleet.worker(2)
        os.kill(ended, how)
        eventually(lambda: fleet.worker(2) != ended)  # noqa: B023  # called at once
        fleet.recover()
    time.sleep(DEADLINE_S)
    fleet.recover()
    after = fleet.counts()
    assert (after.lost, after.leaked) == (before.lost, 0), (before, after)


@pytest.mark.parametrize("offset_s", [1800.0, -3600.0, 0.0])
def test_a_clock_that_is_set_costs_none(fleet: Fleet, offset_s: float) -> None:
    before = fleet.counts()
    fleet.set_clock(offset_s)
    time.sleep(1.0)  # it is read twice a second
    fleet.recover()
    after = fleet.counts()
    assert (after.lost, after.leaked) == (before.lost, 0), (before, after)


def test_while_a_clock_is_so_wrong_that_kafka_refuses_its_records_they_are_lost(fleet: Fleet) -> None:
    """By default, brokers take no record that is more than an hour ahead."""
    before = fleet.counts()
    fleet.set_clock(7200.0)
    eventually(lambda: '"canary":{"ok":false,"state":"lost"}' in fleet.one.get("/api/v1/ready"))
    fleet.set_clock(0.0)
    fleet.recover()
    after = fleet.counts()
    assert after.missing > before.missing
    assert after.leaked == 0


def test_a_topic_that_is_created_again_costs_those_that_were_in_it_and_no_later_ones(fleet: Fleet) -> None:
    before = fleet.counts()
    recreate_topic(fleet.kafka.bootstrap, fleet.topic, PARTITIONS)
    fleet.recover()
    between = fleet.counts()
    time.sleep(DEADLINE_S)
    fleet.recover()
    settled = fleet.counts()
    time.sleep(DEADLINE_S)
    fleet.recover()
    after = fleet.counts()
    print(f"the topic is created again: before {before}, after {between}, a minute later {settled}, two {after}")
    assert (after.lost, after.leaked) == (settled.lost, 0), (settled, after)


def test_a_drain_loses_none_that_are_in_flight(fleet: Fleet) -> None:
    lines = fleet.lines("canary lost")
    os.kill(fleet.kafka.pid, signal.SIGSTOP)
    time.sleep(1.0)
    for server in fleet.servers:
        server.stop()
    os.kill(fleet.kafka.pid, signal.SIGCONT)
    assert fleet.lines("canary lost") == lines
