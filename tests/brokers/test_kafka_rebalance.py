"""A group with the consumer protocol (KIP-848): members join and leave, and a group of the classic protocol moves over
and back, while records come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.brokers.kafka_facade import KafkaFacade
from cocoa_tornado.brokers.port import BrokerState
from cocoa_tornado.rules.handoff import OffsetLedger
from testing.kafka_server import KafkaServer
from testing.waiting import eventually

from .bench import IN_USE, MAYBE_AWAY, PATIENCE_S, KafkaStand, Receiver, decode, kafka_stand, ready

pytestmark = [pytest.mark.gen_test(timeout=180), pytest.mark.kafka, pytest.mark.apache, MAYBE_AWAY]

PARTITIONS = 3


class Group:
    """Members of one group, which hand over to one receiver, and a producer that writes to each partition in turn.

    :ivar written: records of each partition so far
    """

    def __init__(self, server: KafkaServer) -> None:
        self.stands = {client: kafka_stand(client, server) for client in ("kafka", "confluent")}
        self.stand: KafkaStand = self.stands["confluent"]
        self.receiver = Receiver()
        self.written = 0
        self._members: list[KafkaFacade] = []

    async def start(self, protocol: str, client: str = "confluent") -> KafkaFacade:
        member = self.begin(protocol, client)
        await ready(member)
        return member

    def begin(self, protocol: str, client: str = "confluent", **options: Any) -> KafkaFacade:
        """A member that is about to join."""
        member = self.stands[client].make(replace(self.stand.options, group_protocol=protocol, **options))
        member.start(self.receiver, decode)
        self._members.append(member)
        return member

    async def stop(self, *members: KafkaFacade) -> None:
        for member in members or self._members:
            await member.close(5.0)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """At the end, check that no record is missing and that each partition arrived in order. Records that a revoke
        could not commit in time may arrive again."""

        async def write() -> None:
            for number in count():
                for partition in range(PARTITIONS):
                    await self.stand.write([(None, b"%d|%d" % (partition, number))], partition=partition)
                self.written = number + 1

        writer = asyncio.ensure_future(write())
        try:
            yield
        finally:
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer
        for partition in range(PARTITIONS):
            await eventually(lambda: self.heard(partition) >= self.written, PATIENCE_S)  # noqa: B023  # called at once

    def heard(self, partition: int) -> int:
        """How many records of a partition have come, all before them having come first."""
        known = 0
        for payload in self.receiver.payloads:
            device, _, number = payload.partition(b"|")
            if int(device) == partition:
                assert int(number) <= known, f"partition {partition} skips from {known} to {int(number)}"
                known = max(known, int(number) + 1)
        return known

    async def goes_on(self) -> None:
        """Records that are written from now on come, of each partition."""
        goal = self.written + 2
        for partition in range(PARTITIONS):
            await eventually(lambda: self.heard(partition) >= goal, PATIENCE_S)  # noqa: B023  # called at once


def books(member: KafkaFacade) -> dict[int, OffsetLedger]:
    """The books of each partition that it reads."""
    assert member._consuming is not None
    reading = member._consuming
    return {reading.number(partition): books for partition, books in reading._assignment.ledgers.copy().items()}


async def shared_out(*members: KafkaFacade) -> None:
    """Each partition is read by one of them, and none has two more than another."""

    def is_so() -> bool:
        shares = [books(member).keys() for member in members]
        sizes = sorted(map(len, shares))
        return sum(sizes) == len(set().union(*shares)) == PARTITIONS and sizes[-1] - sizes[0] <= 1

    await eventually(is_so, PATIENCE_S)


@pytest.fixture
def group(kafka: KafkaServer, io_loop: IOLoop) -> Iterator[Group]:
    group = Group(kafka)
    io_loop.run_sync(lambda: group.stand.create(group.stand.results, PARTITIONS))
    yield group
    io_loop.run_sync(group.stop)


async def test_partitions_that_stay_are_read_on_while_members_join_and_leave(group: Group) -> None:
    one, two = await group.start("consumer"), await group.start("consumer")
    await shared_out(one, two)
    async with group.writing():
        await group.goes_on()
        before = books(one) | books(two)
        three = await group.start("consumer")
        await shared_out(one, two, three)
        # A member without a partition is still a member.
        await group.start("consumer")
        await group.goes_on()
        # The same objects: what stays was neither given up nor begun again.
        assert len(before.items() & (books(one) | books(two)).items()) == PARTITIONS - 1
        stays = books(one) | books(two)
        await group.stop(three)
        await group.goes_on()
        assert stays.items() <= (books(one) | books(two)).items()


async def test_a_group_moves_to_the_consumer_protocol_and_back_while_it_is_read(group: Group) -> None:
    old = [await group.start("classic", "kafka"), await group.start("classic")]
    await shared_out(*old)
    async with group.writing():
        await group.goes_on()
        new = [await group.start("consumer")]
        await shared_out(*old, *new)
        await group.goes_on()
        await group.stop(old[0])
        new.append(await group.start("consumer"))
        await group.stop(old[1])
        await shared_out(*new)
        await group.goes_on()
        back = await group.start("classic", "kafka")
        await shared_out(back, *new)
        await group.stop(*new)
        await shared_out(back)
        await group.goes_on()


@IN_USE
async def test_a_gateway_that_reads_alone_stands_by_while_the_group_has_members_of_the_consumer_protocol(
    group: Group,
) -> None:
    """The brokers describe such a group as one that does not exist."""
    member = await group.start("consumer")
    alone = group.begin("classic", "kafka", sole_reader=True)
    await eventually(lambda: alone.status().state is BrokerState.STANDBY, PATIENCE_S)
    await group.stop(member)
    await ready(alone)
