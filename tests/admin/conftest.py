"""Gateways with the admin API, and operators."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import AdminTokenRequest, admin_claims
from cocoa_tornado.rules.admin_tokens import SCOPES
from testing.raw_device import RawDevice, Response

from ..harness import Harness, Neighbors

ADMIN_SECRET = "the operators' secret of thirty-two bytes"
BASE = "/api/v1/admin"


def admin_token(*scopes: str, subject: str = "ann", lifetime_s: float = 600.0, **claims: object) -> str:
    """A token of an operator; with every scope, if none is named."""
    request = AdminTokenRequest(subject, scopes or SCOPES, lifetime_s, claims)
    return Signer.from_secret(ADMIN_SECRET).sign(admin_claims(request, time.time()))


class Answered(NamedTuple):
    """:ivar body: of JSON"""

    status: int
    body: Any
    headers: dict[str, str]


class StartAdmin(Protocol):
    """Starts a gateway with the admin API."""

    async def __call__(self, **options: Any) -> Harness: ...


@pytest.fixture
def start_admin(io_loop: IOLoop, tmp_path: Path) -> Iterator[StartAdmin]:
    started: list[Harness] = []

    async def start(**options: Any) -> Harness:
        defaults: dict[str, Any] = {"admin_jwt_secret": ADMIN_SECRET, "data_dir": tmp_path}
        harness = await Harness.start(**(defaults | options))
        started.append(harness)
        return harness

    yield start
    for harness in started:
        io_loop.run_sync(harness.stop)


@pytest.fixture
def gateway(io_loop: IOLoop, start_admin: StartAdmin) -> Harness:
    harness: Harness = io_loop.run_sync(start_admin)
    return harness


@pytest.fixture
def two_admins(
    io_loop: IOLoop, neighbors: Neighbors, start_admin: StartAdmin, monkeypatch: pytest.MonkeyPatch
) -> tuple[Harness, Harness]:
    """Two gateways that share presence, named a and b. Each has time to answer, however loaded the machine is."""
    monkeypatch.setattr("cocoa_tornado.admin.servers.PATIENCE_S", 30.0)

    async def start(name: str) -> Harness:
        return await start_admin(neighbors=neighbors, server_name=name, duplicate_challenge_s=30.0)

    return io_loop.run_sync(lambda: start("a")), io_loop.run_sync(lambda: start("b"))


async def send(
    gateway: Harness, method: str, target: str, token: str | None, body: bytes = b"", port: int | None = None
) -> Response:
    """One request; the target is below the path of the admin API."""
    device = await RawDevice.connect(port or gateway.port)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        return await device.request(method, target, headers, body)
    finally:
        await device.end()


async def ask(gateway: Harness, method: str, target: str, body: object = None, token: str | None = None) -> Answered:
    """One request of an operator with every scope, unless another token is given."""
    data = b"" if body is None else json.dumps(body).encode()
    response = await send(gateway, method, BASE + target, token or admin_token(), data)
    return Answered(response.status, json.loads(response.body) if response.body else None, response.headers)
