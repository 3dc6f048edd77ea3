"""Canaries: their messages take the way of every record, and nothing else shows that they are there."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.brokers.port import Broker, BrokerState, BrokerStatus
from cocoa_tornado.canaries import GRACE_S, Canaries
from cocoa_tornado.connection.canary import CanaryConnection
from cocoa_tornado.counters import CanaryCounters
from cocoa_tornado.errors import BrokerClosed, BrokerError, WriteDenied
from cocoa_tornado.hub import Hub
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.local import LocalPresence
from cocoa_tornado.presence.port import PresenceState
from cocoa_tornado.relay.memory import MemoryRelay
from cocoa_tornado.routing.address import Everyone
from cocoa_tornado.rules.audiences import audience_of
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.canaries import DEADLINE_S, HEADERS, CanaryState, canary_ids, record_for
from cocoa_tornado.rules.records import Record, decode
from testing.redis_server import RedisServer
from testing.waiting import eventually

from .admin.conftest import ADMIN_SECRET, BASE, admin_token
from .harness import RESULTS, Harness, Neighbors
from .test_several_on_kafka import settle

pytestmark = pytest.mark.gen_test(timeout=60)

FAST: dict[str, Any] = {"canary_interval_s": 0.05}


def canaries_of(harness: Harness) -> Canaries:
    assert harness.gateway.parts.canaries is not None
    return harness.gateway.parts.canaries


async def arrived(harness: Harness, more: int = 6) -> None:
    """Wait until this many more messages have reached their canaries, and at least one each."""
    received = harness.gateway.counters.canary
    goal = received.routed + more
    await eventually(lambda: received.routed >= goal and canaries_of(harness).state is CanaryState.READY)


class Start(Protocol):
    async def __call__(self, **options: Any) -> Harness: ...


@pytest.fixture
def start(io_loop: IOLoop, tmp_path: Path) -> Iterator[Start]:
    """Starts gateways with canaries and the admin API."""
    started: list[Harness] = []

    async def start(**options: Any) -> Harness:
        defaults: dict[str, Any] = {"admin_jwt_secret": ADMIN_SECRET, "data_dir": tmp_path}
        started.append(await Harness.start(**(defaults | FAST | options)))
        return started[-1]

    yield start
    for harness in started:
        io_loop.run_sync(harness.stop)


async def ask(harness: Harness, method: str, target: str, body: bytes = b"") -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {admin_token()}", "Content-Type": "application/json"}
    answered = await harness.http(method, f"{BASE}{target}", headers, body)
    return answered.status, json.loads(answered.body)


async def test_they_are_off_by_default() -> None:
    harness = await Harness.start()
    assert harness.gateway.parts.canaries is None
    assert json.loads((await harness.http("GET", "/api/v1/ready")).body)["parts"]["canary"] == {
        "ok": True,
        "state": "off",
    }
    assert (await harness.metrics())["cocoa_canary_leaked_total"] == 0
    await harness.stop()


async def test_their_messages_arrive_and_the_metrics_and_ready_say_so(start: Start) -> None:
    harness = await start()
    await arrived(harness)
    metrics, counters = await harness.metrics(), harness.gateway.counters.canary
    assert metrics["cocoa_canary_sent_total"] >= 6
    assert (metrics["cocoa_canary_lost_total"], metrics["cocoa_canary_leaked_total"]) == (0, 0)
    assert metrics["cocoa_canary_seconds_count"] >= 6
    assert counters.seconds.total > 0
    ready = await harness.http("GET", "/api/v1/ready")
    assert (ready.status, json.loads(ready.body)["parts"]["canary"]) == (200, {"ok": True, "state": "ready"})
    record = harness.broker.records(RESULTS)[-1]
    assert record.headers == HEADERS


@pytest.mark.parametrize("mailbox", ["none://", "memory://"])
async def test_they_are_in_no_count_list_limit_or_all(start: Start, mailbox: str) -> None:
    harness = await start(max_connections=1, mailbox=mailbox)
    gateway = harness.gateway
    await arrived(harness)
    device = await harness.connect("doll")
    refused = await harness.upgrade(harness.token("one too many"))
    assert refused.response.status == 503
    await harness.publish("", "to all", to={"all": True})
    assert json.loads(await device.recv())["text"] == "to all"
    await arrived(harness)
    assert (len(gateway.hub), gateway.presence.slots_taken) == (1, 1)
    assert [client.identity.device_id for client in gateway.hub] == ["doll"]
    assert list(gateway.hub.devices()) == ["doll"]
    metrics = await harness.metrics()
    assert (metrics["cocoa_connections"], metrics["cocoa_slots_taken"]) == (1, 1)
    assert metrics["cocoa_messages_routed_total"] == 1
    assert metrics["cocoa_canary_leaked_total"] == 0
    _, listed = await ask(harness, "GET", "/devices")
    assert [row["device_id"] for row in listed["devices"]] == ["doll"]
    for target in ("/devices?prefix=cocoa-canary-", "/top", "/overview", "/quarantine"):
        status, answer = await ask(harness, "GET", target)
        assert (status, "cocoa-canary-" in json.dumps(answer)) == (200, False)
    canary = canaries_of(harness).device_ids[0]
    _, closed = await ask(harness, "DELETE", f"/devices/{canary}/connections")
    assert closed["closed"] == 0
    _, explained = await ask(harness, "POST", "/explain", json.dumps({"device_id": canary}).encode())
    assert not explained["valid"]


async def test_a_token_for_a_canary_is_refused_and_a_record_for_one_is_quarantined(start: Start) -> None:
    harness = await start()
    await arrived(harness)
    canary = canaries_of(harness).device_ids[0]
    refused = await harness.upgrade(harness.token(canary))
    assert (refused.response.status, refused.response.body) == (401, b'{"message":"Invalid JWT claims"}')
    await harness.publish(canary, "without the header")
    await harness.publish("", "by name", to={"devices": [canary, "doll"]})
    await eventually(lambda: harness.broker.counters.quarantined == {"no_device": 1, "to": 1})
    await arrived(harness)
    assert (await harness.metrics())["cocoa_canary_leaked_total"] == 0


async def test_with_the_header_a_message_for_a_canary_that_is_gone_is_neither_counted_nor_logged(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    harness = await start()
    gone, _ = canary_ids("0000000000000000")
    await harness.broker.publish(RESULTS, "s", record_for(gone, "s", 0), HEADERS)
    await arrived(harness)
    assert harness.gateway.counters.unknown_device == 0
    assert "message dropped" not in [record.message for record in caplog.records]


@pytest.mark.parametrize("mailbox", ["memory", "sqlite"])
async def test_with_a_mailbox_nothing_of_them_is_stored(start: Start, mailbox: str, tmp_path: Path) -> None:
    harness = await start(mailbox="memory://" if mailbox == "memory" else f"sqlite:///{tmp_path}/box.db")
    await arrived(harness)
    box = harness.gateway.mailbox
    assert box is not None
    assert box.counters.stored == 0
    assert box.status().messages == 0
    assert await box.members(audience_of(Everyone()), "", 10) == []


@pytest.mark.logs("cocoa.canary", "message leaked")
async def test_a_planted_leak_is_found_and_is_a_warning_of_ready_only(start: Start) -> None:
    harness = await start()
    await arrived(harness)
    clients = harness.gateway.hub._clients
    a, b = canaries_of(harness).device_ids
    clients[a], clients[b] = clients[b], clients[a]
    await eventually(lambda: harness.gateway.counters.canary.leaked >= 2)
    clients[a], clients[b] = clients[b], clients[a]
    ready = await harness.http("GET", "/api/v1/ready")
    assert (ready.status, json.loads(ready.body)["parts"]["canary"]) == (200, {"ok": False, "state": "leaked"})
    assert (await harness.metrics())["cocoa_canary_leaked_total"] >= 2


async def test_with_stand_bys_their_messages_arrive_too(start: Start) -> None:
    harness = await start(connections_per_device=2, connection_delivery="one")
    await arrived(harness)
    canary = canaries_of(harness)._connections[canaries_of(harness).device_ids[0]]
    assert harness.gateway.hub.is_receiving(cast("Any", canary))


async def test_a_drain_stops_them_first_and_loses_none(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    harness = await start()
    await arrived(harness)
    canaries, sent = canaries_of(harness), harness.gateway.counters.canary.sent
    await harness.gateway.drain_and_stop()
    assert harness.gateway.counters.canary.sent == sent
    assert (harness.gateway.counters.canary.lost, len(canaries._watch)) == (0, 0)
    assert harness.gateway.hub.connected == {}
    assert canaries._connections == {}


# -- several servers


async def two_with_canaries(neighbors: Neighbors, mailbox: MemoryMailbox | None = None) -> tuple[Harness, Harness]:
    """Each publishes to the broker that the other one reads."""
    a = await Harness.start(MemoryBroker(), neighbors=neighbors, shared_mailbox=mailbox, **FAST)
    b = await Harness.start(MemoryBroker(), neighbors=neighbors, shared_mailbox=mailbox, **FAST)
    canaries_of(a)._broker, canaries_of(b)._broker = b.gateway.broker, a.gateway.broker
    return a, b


async def test_a_message_that_another_server_reads_is_forwarded_to_its_canary(neighbors: Neighbors) -> None:
    a, b = await two_with_canaries(neighbors)
    await arrived(a)
    await arrived(b)
    for harness in (a, b):
        counters = harness.gateway.counters
        assert harness.gateway.relay.counters.received.get("forward", 0) >= 6
        assert (counters.canary.leaked, counters.canary.lost, counters.unknown_device) == (0, 0, 0)
        assert harness.gateway.presence.slots_taken == 0
    await a.stop()
    await b.stop()


@pytest.mark.parametrize("neighbors", ["memory"], indirect=True)
@pytest.mark.logs("cocoa.canary", "message leaked")
async def test_a_message_that_reaches_a_canary_of_the_wrong_server_is_found(neighbors: Neighbors) -> None:
    a, b = await two_with_canaries(neighbors)
    await arrived(a)
    await arrived(b)
    # The fault: b takes a canary of a for one of its own.
    ours, theirs = canaries_of(a).device_ids[0], canaries_of(b).device_ids[0]
    b.gateway.hub._clients[ours] = b.gateway.hub._clients[theirs]
    await eventually(lambda: b.gateway.counters.canary.leaked > 0)
    del b.gateway.hub._clients[ours]
    assert canaries_of(b).part() == {"ok": False, "state": "leaked"}
    assert a.gateway.counters.canary.leaked == 0
    await a.stop()
    await b.stop()


@pytest.mark.parametrize("neighbors", ["memory"], indirect=True)
async def test_with_a_shared_mailbox_they_are_forwarded_and_not_stored(neighbors: Neighbors) -> None:
    mailbox = MemoryMailbox(BoxLimits())
    a, b = await two_with_canaries(neighbors, mailbox)
    await arrived(a)
    await arrived(b)
    assert mailbox.counters.stored == 0
    await a.stop()
    await b.stop()


@pytest.mark.logs("cocoa.presence", "lease lost")
async def test_a_fenced_server_connects_its_canaries_again_without_a_leak_or_a_loss(neighbors: Neighbors) -> None:
    a, b = await two_with_canaries(neighbors)
    await arrived(a)
    before = dict(canaries_of(a)._connections)
    neighbors.fence(a.gateway)
    await eventually(lambda: set(canaries_of(a)._connections.values()).isdisjoint(before.values()))
    await arrived(a)
    await arrived(b)
    for harness in (a, b):
        assert (harness.gateway.counters.canary.leaked, harness.gateway.counters.canary.lost) == (0, 0)
    await a.stop()
    await b.stop()


@pytest.mark.redis
@pytest.mark.logs("cocoa.presence", "presence frozen")
@pytest.mark.logs("cocoa.relay", "relay unavailable", optional=True)
async def test_a_server_that_freezes_keeps_messages_back_and_none_leaks_or_gets_lost(own_redis: RedisServer) -> None:
    own_redis.start()
    settle(own_redis)
    harness = await Harness.start(MemoryBroker(), presence=own_redis.url, presence_freeze_s=2, **FAST)
    gateway, counters = harness.gateway, harness.gateway.counters.canary
    await eventually(lambda: canaries_of(harness).state is CanaryState.READY)
    own_redis.pause()
    await eventually(lambda: gateway.presence.status().state is PresenceState.FROZEN)
    await asyncio.sleep(0)
    before, sent = counters.seconds.total, counters.sent
    await eventually(lambda: counters.sent >= sent + 6)
    assert counters.seconds.total == before
    own_redis.resume()
    await eventually(lambda: gateway.presence.status().state is PresenceState.READY)
    await arrived(harness)
    assert counters.seconds.total > before
    assert (counters.leaked, counters.lost) == (0, 0)
    await harness.stop()


# -- by a clock of their own


@dataclass
class FakeBroker:
    """Records publications, and acknowledges on demand."""

    state: BrokerState = BrokerState.READY
    published: list[tuple[str, bytes, Mapping[str, bytes] | None, asyncio.Future[None]]] = field(default_factory=list)
    is_closed: bool = False

    def status(self) -> BrokerStatus:
        return BrokerStatus(self.state, "")

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes] | None = None
    ) -> asyncio.Future[None]:
        if self.is_closed:
            raise BrokerClosed("closed")
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.published.append((key, value, headers, answer))
        return answer


class Stand:
    """Canaries with a clock and a broker of their own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.broker, self.hub, self.counters = FakeBroker(), Hub(), CanaryCounters()

        def clock() -> float:
            return self.now

        self.presence = LocalPresence(lambda: SlotLimits(), MemoryRelay(), clock)
        self.presence.start(self.hub)
        broker = cast("Broker", self.broker)
        self.canaries = Canaries(self.hub, self.presence, broker, self.counters, RESULTS, 10.0, clock, clock)
        self.canaries.start()

    async def __aenter__(self) -> Stand:
        await asyncio.sleep(0)  # it looks once
        return self

    async def __aexit__(self, *_: object) -> None:
        self.canaries.stop()

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.canaries.look()
        await asyncio.sleep(0)

    async def answer(self, error: Exception | None = None) -> None:
        """The broker acknowledges, or refuses, what it was given."""
        for *_, answer in self.broker.published:
            if not answer.done():
                answer.set_result(None) if error is None else answer.set_exception(error)
        await asyncio.sleep(0)

    async def deliver(self) -> None:
        """All that was published reaches its canary."""
        published, self.broker.published = self.broker.published, []
        for key, value, headers, answer in published:
            if not answer.done():
                answer.set_result(None)
            record = decode(key.encode(), value, 0, tuple((headers or {}).items()))
            assert isinstance(record, Record)
            assert self.hub.send_to_device(str(record.address), record.payload) == 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_each_canary_gets_a_message_per_interval() -> None:
    async with Stand() as stand:
        assert len(stand.broker.published) == 2
        await stand.deliver()
        await stand.pass_time(9.9)
        assert stand.broker.published == []
        await stand.pass_time(0.1)
        assert len(stand.broker.published) == 2
        assert (stand.counters.sent, stand.canaries.state) == (4, CanaryState.READY)


async def test_nothing_is_sent_before_the_broker_is_ready_and_everything_afterwards() -> None:
    stand = Stand()
    stand.broker.state = BrokerState.CONNECTING
    async with stand:
        await stand.pass_time(100.0)
        assert stand.broker.published == []
        stand.broker.state = BrokerState.READY
        await stand.pass_time(1.0)
        await stand.deliver()
        stand.broker.state = BrokerState.CONNECTING
        await stand.pass_time(10.0)
        assert len(stand.broker.published) == 2


@pytest.mark.logs("cocoa.canary", "canary lost")
async def test_while_kafka_is_away_messages_count_as_lost_with_one_line_and_few_are_queued(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cocoa.canary")
    async with Stand() as stand:
        await stand.deliver()
        for _ in range(60):
            await stand.pass_time(10.0)
        away_s = 600.0
        assert len(stand.broker.published) == 2 * away_s / DEADLINE_S
        assert stand.counters.lost == 2 * (away_s / DEADLINE_S - 1)
        assert stand.canaries.part() == {"ok": False, "state": "lost"}
        await stand.deliver()  # what was queued comes late
        await stand.pass_time(10.0)
        await stand.deliver()
        assert stand.canaries.part() == {"ok": True, "state": "ready"}
        assert [record.message for record in caplog.records] == ["canaries arrive", "canary lost", "canaries arrive"]


@pytest.mark.logs("cocoa.canary", "canary lost")
async def test_what_cannot_be_published_is_lost_at_once() -> None:
    async with Stand() as stand:
        await stand.answer(BrokerError("the publish queue is full"))
        assert (stand.counters.lost, stand.canaries.state) == (2, CanaryState.LOST)


@pytest.mark.logs("cocoa.canary", "canaries off")
async def test_a_topic_that_refuses_the_write_turns_them_off_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async with Stand() as stand:
        await stand.answer(WriteDenied("not allowed"))
        await stand.pass_time(100.0)
        assert len(stand.broker.published) == 2
        assert (stand.counters.lost, stand.canaries.part()) == (0, {"ok": False, "state": "refused"})
        assert stand.hub.connected == {}
        assert len(caplog.records) == 1


async def test_a_broker_that_is_closed_ends_quietly() -> None:
    async with Stand() as stand:
        await stand.deliver()
        stand.broker.is_closed = True
        await stand.pass_time(10.0)
        await stand.pass_time(100.0)
        assert stand.counters.lost == 0


async def test_messages_that_wait_for_the_lease_arrive_when_it_is_valid_again() -> None:
    async with Stand() as stand:
        lease = stand.presence.lease
        valid_until, lease.until = lease.until, 0.0
        await stand.deliver()
        assert stand.counters.seconds.total == 0
        stand.now += 5.0
        lease.until = valid_until
        stand.hub.resumed()
        await asyncio.sleep(0)
        assert stand.counters.seconds.total == 10.0
        assert stand.canaries.state is CanaryState.READY


@pytest.mark.logs("cocoa.canary", "canary lost")
async def test_after_a_pause_of_the_process_what_waits_for_it_comes_first() -> None:
    async with Stand() as stand:
        await stand.pass_time(90.0)
        assert stand.counters.lost == 0
        await stand.deliver()
        assert (stand.counters.lost, stand.canaries.state) == (0, CanaryState.READY)
        await stand.pass_time(10.0)
        assert len(stand.broker.published) == 2
        await stand.pass_time(90.0)
        await stand.pass_time(GRACE_S - 1.0)
        assert stand.counters.lost == 0
        await stand.pass_time(1.0)
        assert (stand.counters.lost, stand.canaries.state) == (2, CanaryState.LOST)


async def test_a_canary_that_is_challenged_answers() -> None:
    async with Stand() as stand:
        device_id = stand.canaries.device_ids[0]
        client = stand.hub.connected[device_id][0]
        assert isinstance(client, CanaryConnection)
        verdicts: list[object] = []
        stand.presence.begin_claim(device_id, verdicts.append)
        await asyncio.sleep(0)
        assert [str(verdict) for verdict in verdicts] == ["device"]
        assert client.is_open
