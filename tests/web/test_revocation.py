"""A key that is removed takes the connections with it that it has let in."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cocoa_tornado.connection.device_context import OpenSockets
from cocoa_tornado.live import Live
from cocoa_tornado.rules.close_codes import KEY_REMOVED, CloseReason
from cocoa_tornado.rules.identity import DeviceIdentity
from cocoa_tornado.web.revocation import WORK_OF_A_CLOSE, WORK_PER_TURN, Revocation
from testing.raw_device import CLOSE, PING
from testing.waiting import eventually

from ..harness import SECRET, Harness
from .conftest import StartGateway

NEW_SECRET = "n" * 32


async def reload(gateway: Harness, **settings: Any) -> None:
    await gateway.gateway.reload(dataclasses.replace(gateway.gateway.settings, **settings))


# -- on a gateway


@pytest.mark.gen_test
async def test_a_secret_that_a_reload_drops_closes_the_connections_that_it_let_in(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await start_gateway()
    old = [await gateway.raw(f"old-{number}") for number in range(3)]
    await reload(gateway, jwt_secret=NEW_SECRET, jwt_previous_secrets=(SECRET,))
    new = await gateway.upgrade(gateway.token("new", secret=NEW_SECRET))
    assert len(gateway.gateway.hub) == 4, "a secret that still verifies closes nobody"
    await reload(gateway, jwt_previous_secrets=())
    for device in old:
        closed = await device.read_until(CLOSE)
        assert (closed.close_code, closed.payload[2:]) == (4401, b"token no longer accepted")
    await eventually(lambda: [client.grant.device_id for client in gateway.gateway.hub] == ["new"])
    assert (await gateway.metrics())['cocoa_connections_closed_total{code="4401"}'] == 3
    assert gateway.gateway.presence.slots_taken == 1
    new.send(8, b"\x03\xe8")
    assert (await new.read_until(CLOSE)).close_code == 1000
    (line,) = [vars(record) for record in caplog.records if record.getMessage() == "key removed"]
    assert line["connections_closed"] == 3


@pytest.mark.gen_test
async def test_a_handshake_whose_key_is_removed_before_its_end_is_a_401(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(duplicate_challenge_s=60.0, jwt_previous_secrets=(NEW_SECRET,))
    incumbent = await gateway.raw("doll")
    newcomer = asyncio.ensure_future(gateway.upgrade(gateway.token("doll", secret=NEW_SECRET)))
    await incumbent.read_until(PING)
    await reload(gateway, jwt_previous_secrets=())
    incumbent.writer.transport.abort()
    response = (await newcomer).response
    assert (response.status, response.body) == (401, b'{"message":"Invalid JWT token"}')
    assert response.headers["www-authenticate"] == "Bearer"
    assert gateway.gateway.presence.slots_taken == 0


# -- by itself


class Connection:
    """As much of a connection as is judged."""

    def __init__(self, proof: str) -> None:
        self.identity = DeviceIdentity("d", 1, "", (), 0.0, proof)
        self.is_open = True
        self.ends: list[CloseReason] = []

    def end(self, reason: CloseReason) -> None:
        self.is_open = False
        self.ends.append(reason)


class Keys:
    """A key store whose trust the test sets."""

    def __init__(self, *trusted: str) -> None:
        self.trusted = set(trusted)

    def still_trusts(self, identity: DeviceIdentity) -> bool:
        return identity.proof in self.trusted


def revocation(keys: Keys, connections: list[Connection]) -> Revocation:
    sockets = OpenSockets()
    for connection in connections:
        sockets.add(cast(Any, connection))
    return Revocation(cast(Live, SimpleNamespace(now=SimpleNamespace(keys=keys))), sockets)


def closed(connections: list[Connection]) -> int:
    return sum(not connection.is_open for connection in connections)


@pytest.mark.gen_test
async def test_ten_thousand_connections_are_closed_a_few_at_a_turn() -> None:
    connections = [Connection("gone") for _ in range(10_000)]
    revocation(Keys("other"), connections).start()
    in_turns = [0]
    while in_turns[-1] < len(connections):
        await asyncio.sleep(0)
        in_turns.append(closed(connections))
    most = max(after - before for before, after in itertools.pairwise(in_turns))
    assert most <= WORK_PER_TURN / WORK_OF_A_CLOSE
    assert all(connection.ends == [KEY_REMOVED] for connection in connections)


@pytest.mark.gen_test
async def test_a_key_that_comes_back_meanwhile_keeps_the_rest() -> None:
    connections = [Connection("key") for _ in range(1_000)]
    keys = Keys()
    rounds = revocation(keys, connections)
    rounds.start()
    await asyncio.sleep(0)
    keys.trusted.add("key")
    before = closed(connections)
    for _ in range(len(connections)):
        await asyncio.sleep(0)
    assert 0 < closed(connections) == before < len(connections)


@pytest.mark.gen_test
async def test_a_second_removal_during_the_first_is_another_round_of_the_same_task() -> None:
    connections = [Connection(f"key-{number % 2}") for number in range(400)]
    keys = Keys("key-1")
    rounds = revocation(keys, connections)
    rounds.start()
    await asyncio.sleep(0)
    keys.trusted.clear()
    rounds.start()
    while closed(connections) < len(connections):
        await asyncio.sleep(0)
    assert all(len(connection.ends) == 1 for connection in connections)
    rounds.stop()
