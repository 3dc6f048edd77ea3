"""Several gateways in one consumer group, with presence, relay and mailbox in a real Redis: through joins and leaves,
every device hears every record once and in order, whichever gateway reads it and whichever the device is at."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cocoa_tornado.presence.redis_scripts import META
from testing.redis_server import RedisServer
from testing.waiting import eventually

from .harness import Harness
from .test_gateway_on_kafka import KAFKA_PATIENCE_S, Hearing, Site, answers, message, only, record, site

__all__ = ["site"]

pytestmark = [
    pytest.mark.gen_test(timeout=180),
    pytest.mark.kafka,
    pytest.mark.redis,
    pytest.mark.logs("cocoa.broker", "broker unavailable", optional=True),  # librdkafka, on a busy machine
]

PARTITIONS = 3


def settle(server: RedisServer) -> None:
    """Begin the first term as settled: no test waits for the leases of nobody."""
    server.command("FLUSHALL")
    with server.client() as client:
        facts = client.info()
    run = f"{facts['run_id']}.{facts['master_replid']}"
    server.command("HSET", META, "term", 1, "run", run, "settled", 1)


async def start(site: Site, server: RedisServer, mailbox: str, **settings: Any) -> Harness:
    settings |= {"presence": server.url, "mailbox": server.url if mailbox == "redis" else "none://"}
    settings |= {"canary_interval_s": 0.5}
    return await site.start_ready(**settings)


async def has_sound_canaries(*gateways: Harness) -> None:
    """Messages for the canaries of each gateway arrive, whichever reads them, and none has leaked or got lost."""
    counters = [gateway.gateway.counters.canary for gateway in gateways]
    goals = [each.routed + 4 for each in counters]
    await eventually(lambda: all(each.routed >= goal for each, goal in zip(counters, goals, strict=True)))
    for gateway in gateways:
        awaited = gateway.gateway.parts.canaries._watch._awaited  # type: ignore[union-attr]
        so_far = set(awaited)
        await eventually(lambda: so_far.isdisjoint(awaited))  # noqa: B023  # called at once
    assert [(each.leaked, each.lost) for each in counters] == [(0, 0)] * len(counters)
    states = [gateway.gateway.readiness().parts["canary"]["state"] for gateway in gateways]
    assert states == ["ready"] * len(gateways)


def texts(hearing: Hearing, partition: int) -> list[bytes]:
    """The messages that a device has received of one partition, without cursors."""
    found = [json.loads(heard) for heard in hearing.heard]
    for each in found:
        each.pop("cursor", None)
    return only(partition, [json.dumps(each, separators=(",", ":")).encode() for each in found])


@pytest.mark.parametrize("mailbox", ["none", pytest.param("redis", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("protocol", ["classic", pytest.param("consumer", marks=pytest.mark.apache)])
async def test_devices_hear_each_record_once_and_in_order_while_gateways_join_and_leave(
    site: Site, redis_server: RedisServer, mailbox: str, protocol: str
) -> None:
    if protocol == "consumer":
        pytest.importorskip("confluent_kafka")
    settle(redis_server)
    await site.create(PARTITIONS)
    one = await start(site, redis_server, mailbox, kafka_group_protocol=protocol)
    two = await start(site, redis_server, mailbox, kafka_group_protocol=protocol)
    await eventually(lambda: len(one.gateway.presence.others()) == 1, KAFKA_PATIENCE_S)
    hearings = {"at one": Hearing(await one.connect("at one")), "at two": Hearing(await two.connect("at two"))}

    async def hear_more() -> None:
        goals = {name: len(hearing.heard) + 15 for name, hearing in hearings.items()}
        await eventually(lambda: all(len(hearings[name].heard) >= goals[name] for name in goals), KAFKA_PATIENCE_S)

    async with site.streaming("at one", PARTITIONS) as first, site.streaming("at two", PARTITIONS) as second:
        await hear_more()
        three = await start(site, redis_server, mailbox, kafka_group_protocol=protocol)
        # It never commits, as if it had been killed: the next owner of its partitions reads all that it has read.
        three.gateway.broker._consuming.offsets_to_commit = dict  # type: ignore[attr-defined]
        await hear_more()
        await eventually(lambda: three.gateway.broker.counters.consumed > 20, KAFKA_PATIENCE_S)
        await three.gateway.drain_and_stop()
        await hear_more()
        await has_sound_canaries(one, two)
    for name, sent in (("at one", first), ("at two", second)):
        hearing = hearings[name]
        await eventually(lambda: len(hearing.heard) >= len(sent), KAFKA_PATIENCE_S)  # noqa: B023  # called at once
        for partition in range(PARTITIONS):
            expected = only(partition, [message(value) for value in sent])
            assert texts(hearing, partition) == expected
    if mailbox == "none":
        dropped = [gateway.gateway.counters.dropped.get("repeated", 0) for gateway in (one, two)]
        assert sum(dropped) > 0, "nothing was read twice: the test shows nothing"


@pytest.mark.parametrize(
    ("client", "protocol"),
    [
        ("kafka-python", "classic"),
        ("confluent", "classic"),
        pytest.param("confluent", "consumer", marks=pytest.mark.apache),
    ],
)
async def test_in_a_new_group_the_first_messages_of_all_canaries_arrive(
    site: Site, redis_server: RedisServer, client: str, protocol: str
) -> None:
    """Two of the three gateways have no partition."""
    if client == "confluent":
        pytest.importorskip("confluent_kafka")
    settle(redis_server)
    await site.create(1)
    settings: dict[str, Any] = {"presence": redis_server.url, "canary_interval_s": 0.1}
    settings |= {"kafka_client": client, "kafka_group_protocol": protocol}
    gateways = [await site.start(**settings) for _ in range(3)]
    for gateway in gateways:
        await answers(gateway, 200)
    await has_sound_canaries(*gateways)


async def test_a_stored_message_wakes_its_device_at_another_gateway(site: Site, redis_server: RedisServer) -> None:
    """Until now, two gateways on one Redis mailbox did not wake each other's devices."""
    settle(redis_server)
    await site.create(1)
    one = await start(site, redis_server, "redis")
    two = await start(site, redis_server, "redis")
    hearings = [Hearing(await gateway.connect(name)) for gateway, name in ((one, "at one"), (two, "at two"))]
    away = await two.connect("away")
    await away.close()
    await eventually(lambda: len(two.gateway.hub) == 1)
    group = json.dumps({"all": True}).encode()
    await site.produce([(None, record(name, number)) for number in range(5) for name in ("at one", "at two", "away")])
    await site.produce([(None, record("", 5))], headers=[("cocoa.to", group)])
    await site.produce([(None, record("at two", 6, ttl=0)), (None, record("at one", 6, priority="high"))])
    for hearing in hearings:
        heard = await hearing.hears(7)
        assert sorted(json.loads(each)["text"] for each in heard) == list("0123456")
        assert [json.loads(each)["text"] for each in heard if json.loads(each)["text"] != "6"] == list("012345")
    away = await one.connect("away")
    assert [json.loads(await away.recv())["text"] for _ in range(6)] == list("012345")
    assert one.gateway.counters.kept + two.gateway.counters.kept == 6
    await has_sound_canaries(one, two)
    received = [each.gateway.relay.counters.received.get("forward", 0) for each in (one, two)]
    assert sum(received) > 0, "one of them reads the only partition"
