"""By which names the gateway answers: what no page may read by DNS rebinding, and what devices may ask by any name."""

from __future__ import annotations

import dataclasses
import json
import logging
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

import pytest

from cocoa_tornado.console.files import read_files
from cocoa_tornado.openapi.document import DOCUMENT
from testing.raw_device import RawDevice, Response

from ..admin.conftest import ADMIN_SECRET, admin_token
from ..harness import Harness
from ..scripted_engine import ScriptedEngine
from .conftest import StartGateway

pytestmark = [
    pytest.mark.gen_test(timeout=60),
    pytest.mark.logs("cocoa.service", "DEVELOPMENT KEY IN USE", optional=True),
]

EVIL: Final = {"Host": "evil.example:8080"}
PUBLIC: Final = ("/metrics", "/api/v1/ready", "/api/v1/health", "/api/v1/openapi.json")
CONSOLE: Final = ("/", *(f"/console/{name}" for name in read_files()))
OPERATORS: Final = ("/api/v1/admin/devices", "/api/v1/admin/events", "/api/v1/admin/overview")
REFUSED: Final = b'{"message":"Host not allowed: add its name to the setting allowed_hosts"}'
refuses = pytest.mark.logs("cocoa.http", "host not allowed")


def is_refused(response: Response) -> bool:
    """Whether it is the 421, which must show nothing of what was asked for."""
    shared = [name for name in response.headers if name.startswith("access-control")]
    return (response.status, response.body, shared) == (421, REFUSED, [])


async def ask(port: int, target: str, method: str = "GET", headers: dict[str, str] | None = None) -> Response:
    device = await RawDevice.connect(port)
    try:
        return await device.request(method, target, headers)
    finally:
        await device.end()


async def in_development(start_gateway: StartGateway, folder: Path, **settings: Any) -> Harness:
    """A gateway with the development key."""
    return await start_gateway(jwt_secret="", data_dir=folder, **settings)


@refuses
async def test_with_the_development_key_no_foreign_name_reads_anything(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await in_development(start_gateway, tmp_path)
    for target in (*PUBLIC, *CONSOLE, *OPERATORS):
        assert is_refused(await ask(gateway.port, target, headers=EVIL)), target
        assert not is_refused(await ask(gateway.port, target, headers={"Host": "app.localhost:1"})), target
    for method in ("POST", "PUT", "OPTIONS", "PATCH"):
        assert is_refused(await ask(gateway.port, "/api/v1/admin/devices", method, EVIL)), method
    head = await gateway.dial()
    head.writer.write(b"HEAD /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert (await head.read_to_end()).startswith(b"HTTP/1.1 421 ")


@refuses
async def test_the_same_on_the_port_of_operators(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = await in_development(start_gateway, tmp_path, admin_port=0)
    port = gateway.gateway.parts.listeners.admin_port
    for target in (*CONSOLE, *OPERATORS):
        assert is_refused(await ask(port, target, headers=EVIL)), target
        assert not is_refused(await ask(port, target)), target
    for target in PUBLIC:
        assert is_refused(await ask(gateway.port, target, headers=EVIL)), target


async def test_devices_and_backends_may_ask_by_any_name(start_gateway: StartGateway, tmp_path: Path) -> None:
    """A tunnel to a developer's machine works for firmware without a setting. None of these tells a stranger
    anything."""
    engine = ScriptedEngine()
    gateway = await in_development(start_gateway, tmp_path, engine=engine, api_credentials=(("key", "secret"),))
    tunnel = {"Host": "a1b2.tunnel.example", "X-Forwarded-Host": "a1b2.tunnel.example"}
    credentials = {"X-API-Key": "key", "X-API-Secret": "secret"}
    issued = await ask(gateway.port, "/api/v1/auth/token", "POST", tunnel | credentials)
    assert issued.status == 200
    token = json.loads(issued.body)["token"]
    device = await gateway.upgrade(token, tunnel)
    assert device.response.status == 101
    assert (await ask(gateway.port, "/ws", headers=tunnel)).status == 401
    assert (await ask(gateway.port, "/api/v1/transcriptions", "POST", tunnel)).status == 401
    assert (await ask(gateway.port, "/api/v1/audio/stream", "POST", tunnel)).status == 401
    assert (await ask(gateway.port, "/nothing", headers=tunnel)).body == b'{"message":"Not Found"}'


@refuses
async def test_a_listed_name_is_allowed_and_a_reload_changes_the_list(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await in_development(start_gateway, tmp_path, allowed_hosts=("*.tunnel.example", "box.lan"))
    for host in ("a1b2.tunnel.example", "BOX.lan.:8080", "localhost"):
        assert (await ask(gateway.port, "/metrics", headers={"Host": host})).status == 200
    assert is_refused(await ask(gateway.port, "/metrics", headers={"Host": "tunnel.example"}))
    await gateway.gateway.reload(dataclasses.replace(gateway.gateway.settings, allowed_hosts=("evil.example",)))
    assert is_refused(await ask(gateway.port, "/metrics", headers={"Host": "box.lan"}))
    assert (await ask(gateway.port, "/metrics", headers=EVIL)).status == 200


@refuses
async def test_with_keys_of_its_own_every_name_is_allowed_unless_some_are_listed(start_gateway: StartGateway) -> None:
    every = await start_gateway(admin_jwt_secret=ADMIN_SECRET)
    some = await start_gateway(admin_jwt_secret=ADMIN_SECRET, allowed_hosts=("gateway.example",))
    bearer = {"Authorization": f"Bearer {admin_token()}"}
    for target in (*PUBLIC, "/", *OPERATORS[:1]):
        assert (await ask(every.port, target, headers=EVIL | bearer)).status == 200
        assert is_refused(await ask(some.port, target, headers=EVIL | bearer)), target
        for host in ("gateway.example", "127.0.0.1:1", "[::1]"):
            assert (await ask(some.port, target, headers={"Host": host} | bearer)).status == 200


@refuses
@pytest.mark.parametrize("trusted", [(), (ip_network("127.0.0.1"),)])
async def test_a_foreign_name_that_a_proxy_reports_is_refused_and_a_forged_local_one_does_not_help(
    start_gateway: StartGateway, tmp_path: Path, trusted: tuple[object, ...]
) -> None:
    gateway = await in_development(start_gateway, tmp_path, trusted_proxies=trusted)
    for headers in (
        {"X-Forwarded-Host": "evil.example"},
        {"X-Forwarded-Host": "localhost, evil.example"},
        {"X-Forwarded-Host": "evil.example, localhost"},
        {"Forwarded": 'for=_x;host="evil.example:80";proto=http'},
        EVIL | {"X-Forwarded-Host": "localhost", "Forwarded": "host=localhost"},
    ):
        assert is_refused(await ask(gateway.port, "/metrics", headers=headers)), headers
    assert (await ask(gateway.port, "/metrics", headers={"X-Forwarded-Host": "localhost:9"})).status == 200


@refuses
async def test_what_is_wrong_with_the_name_comes_before_all_else(start_gateway: StartGateway, tmp_path: Path) -> None:
    """No token is judged, and no body read: the answer comes while the client still waits to send it."""
    gateway = await in_development(start_gateway, tmp_path)
    device = await gateway.dial()
    head = (
        "POST /api/v1/admin/messages HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 9\r\nAuthorization: Bearer x\r\n"
    )
    device.writer.write(f"{head}Expect: 100-continue\r\n\r\n".encode())
    response = await device.read_response()
    assert is_refused(response)
    assert response.headers["connection"] == "close"
    absolute = await gateway.dial()
    absolute.writer.write(b"GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert is_refused(await absolute.read_response())
    old = await gateway.dial()
    old.writer.write(b"GET /api/v1/health HTTP/1.0\r\n\r\n")
    assert (await old.read_response()).status == 200


@refuses
async def test_refusals_are_counted_and_a_few_lines_name_the_host_and_the_setting(
    start_gateway: StartGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await in_development(start_gateway, tmp_path)
    with caplog.at_level(logging.INFO, "cocoa"):
        for _ in range(20):
            await ask(gateway.port, "/metrics", headers={"Host": "evil.example" + "x" * 500})
    assert (await gateway.metrics())["cocoa_hosts_refused_total"] == 20
    lines = [record for record in caplog.records if record.getMessage() == "host not allowed"]
    assert 1 <= len(lines) <= 6
    said = vars(lines[0])
    assert said["host"].startswith("evil.examplexxx")
    assert len(said["host"]) <= 300
    assert said["setting"] == "allowed_hosts"
    # Nor does each cost a line of the access log.
    assert not [record for record in caplog.records if record.name == "cocoa.access" and record.levelno > logging.DEBUG]


def test_the_document_has_the_421_where_it_applies() -> None:
    by_any_name = {
        path for path, item in DOCUMENT["paths"].items() if "421" not in next(iter(item.values()))["responses"]
    }
    assert by_any_name == {"/ws", "/api/v1/auth/token", "/api/v1/audio/stream", "/api/v1/transcriptions"}
