"""The whole gateway while its results topic is deleted and created again: each device gets each message once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from testing.kafka_admin import delete_topic, recreate_topic, writer
from testing.kafka_server import KafkaServer, which_broker
from testing.redis_server import RedisServer

from .brokers.bench import KAFKA_CLIENTS, MAYBE_AWAY
from .test_gateway_on_kafka import KAFKA_PATIENCE_S, Hearing, Site, answers, record

pytestmark = [
    pytest.mark.gen_test(timeout=120),
    pytest.mark.kafka,
    pytest.mark.apache,
    MAYBE_AWAY,  # between its deletion and its creation the topic is missing
    pytest.mark.logs("cocoa.broker", "^topic recreated$"),
    pytest.mark.logs("kafka", "", optional=True),  # what kafka-python says of that in the clients of this test
]

STAMP_MS = 1_700_000_000_000
BEFORE, AFTER = 20, 30


@pytest.fixture
def site(kafka: KafkaServer, io_loop: IOLoop) -> Iterator[Site]:
    site = Site(kafka)
    yield site
    io_loop.run_sync(site.stop)


@pytest.fixture(params=KAFKA_CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    """The setting ``kafka_client``."""
    return {"kafka": "kafka-python", "confluent": "confluent"}[request.param]


@pytest.fixture(params=["none", "memory", "sqlite", "redis"])
def mailbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "redis":
        # Before the site among a test's arguments, so that it is emptied once the gateway has left it.
        server: RedisServer = request.getfixturevalue("redis_server")
        yield server.url
        server.command("FLUSHALL")
    else:
        yield f"sqlite:///{tmp_path}/mailbox.db" if request.param == "sqlite" else f"{request.param}://"


def texts(heard: list[bytes]) -> list[str]:
    return [json.loads(message)["text"] for message in heard]


def wanted(start: int, count: int) -> list[str]:
    return [str(number) for number in range(start, start + count)]


async def say(site: Site, start: int, count: int) -> None:
    """All with one timestamp, as a backend may set it: only the offset distinguishes them."""

    def send() -> None:
        with writer(site.server.bootstrap) as producer:
            for number in range(start, start + count):
                producer.send(site.results, value=record("doll", number), timestamp_ms=STAMP_MS).get(10)

    await asyncio.to_thread(send)


async def test_what_is_produced_after_the_topic_was_recreated_arrives_once(
    mailbox: str, client: str, site: Site
) -> None:
    await site.create(1)
    gateway = await site.start_ready(kafka_client=client, mailbox=mailbox)
    hearing = Hearing(await gateway.connect("doll"))
    await say(site, 0, BEFORE)
    await hearing.hears(BEFORE)
    await asyncio.to_thread(recreate_topic, site.server.bootstrap, site.results)
    await say(site, BEFORE, AFTER)
    await hearing.hears(BEFORE + AFTER)
    await answers(gateway, 200)
    await say(site, BEFORE + AFTER, 5)
    await hearing.hears(BEFORE + AFTER + 5)
    heard = texts(hearing.heard)
    assert heard[:BEFORE] == wanted(0, BEFORE)
    assert sorted(heard, key=int) == wanted(0, BEFORE + AFTER + 5)
    assert heard[-5:] == wanted(BEFORE + AFTER, 5)


async def test_a_mailbox_knows_the_new_topic_from_the_old_one_through_a_restart(
    site: Site, client: str, tmp_path: Path
) -> None:
    settings = {"kafka_client": client, "mailbox": f"sqlite:///{tmp_path}/mailbox.db"}
    await site.create(1)
    gateway = await site.start_ready(**settings)
    hearing = Hearing(await gateway.connect("doll"))
    await say(site, 0, BEFORE)
    await hearing.hears(BEFORE)
    await asyncio.to_thread(recreate_topic, site.server.bootstrap, site.results)
    await say(site, BEFORE, 5)
    await hearing.hears(BEFORE + 5)
    await answers(gateway, 200)
    committed = await committing(site, 5)
    assert committed == 5
    await gateway.stop()
    await say(site, BEFORE + 5, AFTER)  # at offsets and with timestamps that the old topic had as well
    gateway = await site.start_ready(**settings)
    again = Hearing(await gateway.connect("doll"))
    heard = texts(await again.hears(AFTER))
    assert heard == wanted(BEFORE + 5, AFTER)


async def committing(site: Site, offset: int) -> int | None:
    """Wait until the group has committed this, and return it."""
    end = asyncio.get_running_loop().time() + KAFKA_PATIENCE_S
    while (found := await site.committed()) != offset and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.1)
    return found


# -- topics that producers create


@pytest.fixture(scope="module")
def creating_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    if which_broker() != "apache":
        pytest.skip("needs Apache Kafka")
    server = KafkaServer(tmp_path_factory.mktemp("creating-kafka"), auto_create=True)
    server.start()
    yield server
    server.close()


@pytest.fixture
def creating_site(creating_kafka: KafkaServer, io_loop: IOLoop) -> Iterator[Site]:
    site = Site(creating_kafka)
    yield site
    io_loop.run_sync(site.stop)


@pytest.mark.slow
async def test_a_topic_that_its_producer_has_created_again_is_read_from_its_first_record(
    mailbox: str, client: str, creating_site: Site
) -> None:
    site = creating_site
    await site.create(1)
    gateway = await site.start_ready(kafka_client=client, mailbox=mailbox)
    hearing = Hearing(await gateway.connect("doll"))
    await say(site, 0, BEFORE)
    await hearing.hears(BEFORE)
    await asyncio.to_thread(delete_topic, site.server.bootstrap, site.results)
    await say(site, BEFORE, AFTER)
    await hearing.hears(BEFORE + AFTER)
    assert sorted(texts(hearing.heard), key=int) == wanted(0, BEFORE + AFTER)
