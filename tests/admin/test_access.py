"""Who may ask the admin API, on every endpoint, on the port of the devices and on a port of its own."""

from __future__ import annotations

import asyncio
import json
import time
from ipaddress import ip_network
from pathlib import Path

import pytest

from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import AdminTokenRequest, TokenRequest, admin_claims, token_claims
from cocoa_tornado.rules.admin_tokens import SCOPES
from cocoa_tornado.rules.identity import TokenPolicy
from cocoa_tornado.rules.quarantined import Quarantined
from cocoa_tornado.rules.rate import RateLimit
from testing.raw_device import RawDevice, Response
from testing.waiting import eventually

from ..harness import SECRET, Harness
from ..scripted_engine import ScriptedEngine
from .conftest import ADMIN_SECRET, BASE, StartAdmin, admin_token, send
from .endpoints import ENDPOINTS

pytestmark = pytest.mark.gen_test(timeout=60)


def message_of(response: Response) -> str:
    body = json.loads(response.body)
    assert list(body) == ["message"]
    return str(body["message"])


async def check_every_endpoint(gateway: Harness, port: int) -> None:
    """Each answers those who may not ask, and has no scope but its own. This needs ``no_limit``."""
    no_key = Signer.from_secret("x" * 32).sign(admin_claims(AdminTokenRequest("eve"), time.time()))
    for endpoint in ENDPOINTS:
        others = [scope for scope in SCOPES if scope != endpoint.scope]
        for token, status, message in (
            (None, 401, "Missing JWT token"),
            ("rubbish", 401, "Invalid JWT token"),
            (no_key, 401, "Invalid JWT token"),
            (admin_token(lifetime_s=-60), 401, "Invalid JWT token"),
            (admin_token(aud="cocoa-other"), 401, "Invalid JWT claims"),
            (admin_token(subject=""), 401, "Invalid JWT claims"),
            (gateway.token(), 403, f"Missing scope {endpoint.scope}"),
            (gateway.token(lifetime_s=-60), 401, "Invalid JWT token"),
            (gateway.token(aud="cocoa-admin"), 401, "Invalid JWT token"),
            (admin_token(*others), 403, f"Missing scope {endpoint.scope}"),
            (admin_token(scope=""), 403, f"Missing scope {endpoint.scope}"),
        ):
            response = await send(gateway, endpoint.method, BASE + endpoint.path, token, port=port)
            assert (response.status, message_of(response)) == (status, message), (endpoint, token)
            assert ("www-authenticate" in response.headers) == (status == 401)
            assert not [name for name in response.headers if name.startswith("access-control")]
        allowed = await send(gateway, endpoint.method, BASE + endpoint.path, admin_token(endpoint.scope), port=port)
        assert allowed.status not in (401, 403, 405), endpoint
        await check_query_is_no_place_for_a_token(gateway, endpoint.method, endpoint.path, port)


async def check_query_is_no_place_for_a_token(gateway: Harness, method: str, path: str, port: int) -> None:
    response = await send(gateway, method, f"{BASE}{path}?token={admin_token()}", None, port=port)
    assert response.status == 401


@pytest.fixture
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of wrong tokens."""
    monkeypatch.setattr("cocoa_tornado.admin.handlers.WRONG_TOKENS", RateLimit(per_s=0, burst=1))


@pytest.mark.usefixtures("no_limit")
async def test_every_endpoint_asks_for_its_scope(start_admin: StartAdmin) -> None:
    gateway = await start_admin()
    await check_every_endpoint(gateway, gateway.port)


@pytest.mark.usefixtures("no_limit")
async def test_every_endpoint_asks_for_its_scope_on_a_port_of_its_own(start_admin: StartAdmin) -> None:
    gateway = await start_admin(admin_port=0)
    assert gateway.gateway.parts.listeners.admin_port not in (0, gateway.port)
    await check_every_endpoint(gateway, gateway.gateway.parts.listeners.admin_port)


async def assert_unknown(gateway: Harness, port: int, method: str, path: str) -> None:
    """The answer does not differ from that of a route that never existed."""
    for headers in ({}, {"Authorization": f"Bearer {admin_token()}"}, {"Origin": "https://app.example"}):
        answers = []
        for target in (f"{BASE}{path}", f"/api/v1/nothing{path}"):
            device = await RawDevice.connect(port)
            answers.append(await device.request(method, target, headers, b"{}" if method == "POST" else b""))
            await device.end()
        known, unknown = ((each.status, each.body, {**each.headers, "date": ""}) for each in answers)
        assert known == unknown, path
        assert known[:2] == (404, b'{"message":"Not Found"}')


PATHS = [endpoint.path for endpoint in ENDPOINTS] + ["", "/", "/devices/%ff/connections", "/nothing"]


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST", "PUT", "OPTIONS", "PATCH"])
async def test_while_it_is_disabled_every_path_is_unknown(start_admin: StartAdmin, method: str) -> None:
    gateway = await start_admin(admin_jwt_secret="", allowed_origins=("https://app.example",))
    for path in PATHS:
        await assert_unknown(gateway, gateway.port, method, path)


async def test_with_a_port_of_its_own_every_path_is_unknown_on_the_other(start_admin: StartAdmin) -> None:
    gateway = await start_admin(admin_port=0)
    for path in PATHS:
        await assert_unknown(gateway, gateway.port, "GET", path)
    for target in ("/ws", "/metrics", "/api/v1/health", "/api/v1/ready", "/api/v1/auth/token"):
        assert (await send(gateway, "GET", target, None, port=gateway.gateway.parts.listeners.admin_port)).status == 404


async def test_no_page_of_another_origin_may_ask(start_admin: StartAdmin) -> None:
    gateway = await start_admin(allowed_origins=("*",))
    for method in ("GET", "OPTIONS"):
        device = await gateway.dial()
        headers = {"Origin": "https://app.example", "Authorization": f"Bearer {admin_token()}"}
        response = await device.request(method, f"{BASE}/devices", headers)
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_a_method_that_an_endpoint_does_not_have_is_a_405(start_admin: StartAdmin) -> None:
    gateway = await start_admin()
    response = await send(gateway, "PATCH", f"{BASE}/devices", admin_token())
    assert (response.status, response.headers["allow"]) == (405, "GET, OPTIONS")


@pytest.mark.parametrize("secret", [SECRET, ADMIN_SECRET])
async def test_an_admin_token_is_nobody_at_the_endpoints_of_devices(start_admin: StartAdmin, secret: str) -> None:
    """Whichever key has signed it, and with the claims of a device beside those of an operator."""
    gateway = await start_admin(engine=ScriptedEngine())
    device = token_claims(TokenRequest("doll", 99), TokenPolicy(), time.time())
    for claims in (
        admin_claims(AdminTokenRequest("ann"), time.time()),
        device | {"aud": "cocoa-admin", "scope": list(SCOPES)},
        device | {"aud": ["cocoa-admin", "cocoa"]},
    ):
        token = Signer.from_secret(secret).sign(claims)
        for method, target in (
            *(("GET", "/ws"), ("GET", f"/ws?token={token}")),
            *(("POST", "/api/v1/audio/stream"), ("POST", "/api/v1/transcriptions")),
        ):
            assert (await send(gateway, method, target, token, b"{}" if method == "POST" else b"")).status == 401


@pytest.mark.logs("cocoa.service", "DEVELOPMENT KEY")
async def test_with_the_development_key_one_key_signs_both_and_neither_stands_for_the_other(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    gateway = await start_admin(jwt_secret="", admin_jwt_secret="", data_dir=tmp_path)
    signer = Signer.from_secret((tmp_path / "development.key").read_text().strip())
    device = signer.sign(token_claims(TokenRequest("doll", 99), TokenPolicy(), time.time()))
    operator = signer.sign(admin_claims(AdminTokenRequest("ann"), time.time()))
    refused = await send(gateway, "GET", f"{BASE}/devices", device)
    assert (refused.status, refused.body) == (403, b'{"message":"Missing scope admin:read"}')
    assert (await send(gateway, "GET", f"{BASE}/devices", operator)).status == 200
    assert (await send(gateway, "GET", "/ws", operator)).status == 401
    assert (await send(gateway, "GET", "/ws", device)).status == 426


async def test_a_reload_replaces_the_keys_and_enables_and_disables_the_api(start_admin: StartAdmin) -> None:
    gateway = await start_admin()
    settings = gateway.gateway.settings

    async def status(token: str) -> int:
        return (await send(gateway, "GET", f"{BASE}/devices", token)).status

    async def reload(secret: str) -> None:
        await gateway.gateway.reload(type(settings)(**{**vars(settings), "admin_jwt_secret": secret}))

    other = Signer.from_secret("o" * 32).sign(admin_claims(AdminTokenRequest("bob"), time.time()))
    assert (await status(admin_token()), await status(other)) == (200, 401)
    await reload("o" * 32)
    assert (await status(admin_token()), await status(other)) == (401, 200)
    await reload("")
    assert (await status(admin_token()), await status(other)) == (404, 404)
    await reload(ADMIN_SECRET)
    assert (await status(admin_token()), await status(other)) == (200, 401)


@pytest.mark.logs("cocoa.service", "reload refused")
async def test_a_reload_cannot_make_a_secret_of_devices_that_of_operators(start_admin: StartAdmin) -> None:
    gateway = await start_admin()
    settings = gateway.gateway.settings
    await gateway.gateway.reload(type(settings)(**{**vars(settings), "admin_jwt_secret": SECRET}))
    assert (await send(gateway, "GET", f"{BASE}/devices", admin_token())).status == 200


# -- brute force


async def guess(gateway: Harness, client: str, token: str) -> Response:
    headers = {"X-Forwarded-For": client, "Authorization": f"Bearer {token}"}
    return await gateway.http("GET", f"{BASE}/devices", headers)


@pytest.mark.logs("cocoa.admin", "too many wrong admin tokens")
async def test_too_many_wrong_tokens_of_one_address_are_a_429_for_it_and_for_no_other(
    start_admin: StartAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_admin(trusted_proxies=(ip_network("127.0.0.0/8"),))
    now = time.monotonic()
    monkeypatch.setattr(gateway.gateway.wiring.devices, "clock", lambda: now)
    for _ in range(10):
        assert (await guess(gateway, "192.0.2.1", admin_token()[:-4] + "AAAA")).status == 401
    for token in ("rubbish", admin_token()):
        refused = await guess(gateway, "192.0.2.1", token)
        assert (refused.status, refused.body) == (429, b'{"message":"Too many wrong tokens"}')
        assert 1 <= int(refused.headers["retry-after"]) <= 6
    assert (await guess(gateway, "192.0.2.2", admin_token())).status == 200


async def test_tokens_that_are_no_guesses_do_not_count_as_such(start_admin: StartAdmin) -> None:
    gateway = await start_admin(trusted_proxies=(ip_network("127.0.0.0/8"),))
    for _ in range(5):
        for token, status in (
            (admin_token(lifetime_s=-60), 401),
            (admin_token(aud="other"), 401),
            (gateway.token(), 403),
            (admin_token("admin:text"), 403),
        ):
            assert (await guess(gateway, "192.0.2.1", token)).status == status
    assert (await guess(gateway, "192.0.2.1", admin_token())).status == 200


async def test_too_many_requests_of_one_operator_are_a_429_for_this_one_alone(
    start_admin: StartAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_admin()
    monkeypatch.setattr("cocoa_tornado.admin.handlers.REQUESTS", RateLimit(per_s=0.01, burst=3))
    token = admin_token()
    statuses = [(await send(gateway, "GET", f"{BASE}/devices", token)).status for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert (await send(gateway, "GET", f"{BASE}/devices", admin_token(subject="bob"))).status == 200


async def test_while_a_server_is_busy_with_long_requests_others_are_a_429_and_short_ones_are_answered(
    start_admin: StartAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocoa_tornado.admin.context.MAX_EXPENSIVE", 0)
    gateway = await start_admin()
    refused = set()
    for endpoint in ENDPOINTS:
        response = await send(gateway, endpoint.method, BASE + endpoint.path, admin_token())
        if response.status == 429:
            refused.add(str(endpoint))
            assert (message_of(response), response.headers["retry-after"]) == ("Too many requests", "1")
    assert refused == {
        *("GET /devices", "GET /groups/nobody/devices", "GET /users/99/devices", "GET /top"),
        *("GET /messages/nothing", "POST /explain", "GET /quarantine"),
        "GET /quarantine/0/0",
    }


async def test_one_operator_has_half_of_the_long_requests_at_most(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = asyncio.Event()
    broker, waiting = gateway.gateway.broker, 0

    async def slow(*arguments: object) -> list[Quarantined]:
        nonlocal waiting
        waiting += 1
        await may_end.wait()
        return []

    monkeypatch.setattr(broker, "quarantined", slow)
    path, bob = f"{BASE}/quarantine", admin_token(subject="bob")
    asked = [asyncio.ensure_future(send(gateway, "GET", path, admin_token())) for _ in range(4)]
    await eventually(lambda: waiting == 4)
    response = await send(gateway, "GET", path, admin_token())
    assert (response.status, message_of(response)) == (429, "Too many requests")
    asked.append(asyncio.ensure_future(send(gateway, "GET", path, bob)))
    await eventually(lambda: waiting == 5)
    may_end.set()
    assert [each.status for each in await asyncio.gather(*asked)] == [200] * 5
    assert (await send(gateway, "GET", path, admin_token())).status == 200
    assert not len(gateway.gateway.wiring.admin.expensive_shares)


# -- the log


async def test_every_change_is_logged_with_the_subject_of_its_token(
    start_admin: StartAdmin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway = await start_admin()
    target = f"{BASE}/devices/doll/connections"
    await send(gateway, "DELETE", target, admin_token(subject="ann\n2026 INFO forged"))
    await send(gateway, "DELETE", target, admin_token("admin:read", subject="eve"))
    await send(gateway, "GET", f"{BASE}/devices", admin_token())
    lines = [vars(record) for record in caplog.records if record.getMessage() == "admin request"]
    assert [(line["sub"], line["method"], line["path"], line["status"]) for line in lines] == [
        ("ann\\n2026 INFO forged", "DELETE", target, 200),
        ("eve", "DELETE", target, 403),
    ]


async def test_the_log_says_what_was_sent_and_whose_token_was_made(
    start_admin: StartAdmin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway = await start_admin()
    for path, body in (
        ("/device-token", {"device_id": "doll\u202e"}),
        ("/messages", {"device_id": "doll", "id": "m\n1", "text": "a secret"}),
    ):
        await send(gateway, "POST", BASE + path, admin_token(), json.dumps(body).encode())
    lines = [vars(record) for record in caplog.records if record.getMessage() == "admin request"]
    assert [line["status"] for line in lines] == [200, 202]
    assert (lines[0]["device_id"], lines[1]["id"]) == ("doll\\u202e", "m\\n1")
    assert "secret" not in caplog.text
