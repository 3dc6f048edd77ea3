"""Web pages of other origins: what they may read, and OPTIONS."""

from __future__ import annotations

import dataclasses

import pytest

from cocoa_tornado.rules.cors import ROUTES
from testing.raw_device import Response

from ..harness import Harness
from .conftest import StartGateway

PAGE = "https://app.example"
TOKEN_PATH, AUDIO_PATH, PUBLISH_PATH = "/api/v1/auth/token", "/api/v1/audio/stream", "/api/v1/transcriptions"
GOOD = {"X-API-Key": "backend", "X-API-Secret": "a secret"}


async def start(start_gateway: StartGateway, *origins: str) -> Harness:
    return await start_gateway(allowed_origins=origins, api_credentials=(("backend", "a secret"),))


def is_shared(response: Response) -> bool:
    """Whether the page may read it. What must hold either way is asserted."""
    headers = response.headers
    assert headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in headers
    origin = headers.get("access-control-allow-origin")
    assert origin in (None, PAGE)
    return origin == PAGE


@pytest.mark.gen_test
async def test_every_answer_is_shared_with_a_listed_origin_errors_included(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway, PAGE)
    bearer = {"Authorization": f"Bearer {gateway.token('doll')}"}
    record = b'{"device_id":"doll","text":"x"}'
    for method, target, headers, body, status in (
        ("GET", "/ws", {}, b"", 401),
        ("GET", "/ws", bearer, b"", 426),
        ("GET", "/ws?interim=perhaps", bearer, b"", 400),
        ("POST", "/ws", bearer, b"", 405),
        ("FETCH", "/ws", bearer, b"", 405),
        ("POST", TOKEN_PATH, GOOD, b"", 200),
        ("POST", TOKEN_PATH, GOOD, b"{", 400),
        ("POST", TOKEN_PATH, {}, b"", 401),
        ("POST", TOKEN_PATH, GOOD, b"x" * (1024 * 1024 + 1), 413),
        ("GET", TOKEN_PATH, {}, b"", 405),
        ("POST", PUBLISH_PATH, bearer, record, 202),
        ("POST", PUBLISH_PATH, bearer, b"x", 400),
        ("POST", PUBLISH_PATH, {}, record, 401),
        ("POST", PUBLISH_PATH, bearer | {"Content-Length": "99999999999"}, b"", 413),
        ("POST", AUDIO_PATH, bearer | {"Content-Type": "audio/wav"}, b"RIFF", 501),
        ("PUT", AUDIO_PATH, bearer, b"RIFF", 405),
    ):
        response = await gateway.http(method, target, headers | {"Origin": PAGE}, body)
        assert response.status == status, (method, target, response)
        assert is_shared(response), (method, target, response)
        exposed = response.headers["access-control-expose-headers"].split(", ")
        assert {"Retry-After", "WWW-Authenticate"} == set(exposed)
        assert not is_shared(await gateway.http(method, target, headers | {"Origin": "https://evil.example"}, body))
        assert not is_shared(await gateway.http(method, target, headers, body))


@pytest.mark.gen_test
async def test_a_preflight_is_a_204_that_says_what_may_be_sent(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway, PAGE)
    for path in ROUTES:
        method = "GET" if path == "/ws" else "POST"
        asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "authorization"}
        response = await gateway.http("OPTIONS", path, asked | {"Origin": PAGE})
        assert (response.status, response.body) == (204, b"")
        assert is_shared(response)
        assert method in response.headers["access-control-allow-methods"].split(", ")
        assert "Authorization" in response.headers["access-control-allow-headers"].split(", ")
        assert response.headers["access-control-max-age"] == "600"
        foreign = await gateway.http("OPTIONS", path, asked | {"Origin": "https://evil.example"})
        assert (foreign.status, is_shared(foreign)) == (204, False)


@pytest.mark.gen_test
async def test_options_of_every_route_names_its_methods(gateway: Harness) -> None:
    for path, methods in (
        ("/ws", {"GET"}),
        ("/api/v1/health", {"GET", "HEAD"}),
        ("/api/v1/ready", {"GET", "HEAD"}),
        ("/metrics", {"GET"}),
        *((path, {"POST"}) for path in (TOKEN_PATH, AUDIO_PATH, PUBLISH_PATH)),
    ):
        response = await gateway.http("OPTIONS", path, {"Origin": PAGE})
        assert (response.status, response.body) == (204, b"")
        assert methods | {"OPTIONS"} <= set(response.headers["allow"].split(", "))
        assert "content-length" not in response.headers
        assert "access-control-allow-origin" not in response.headers
    assert (await gateway.http("OPTIONS", "/nothing/here")).status == 404


@pytest.mark.gen_test
async def test_no_page_reads_health_readiness_or_metrics_whatever_is_listed(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway, "*", PAGE)
    for path in ("/api/v1/health", "/api/v1/ready", "/metrics", "/", "/nothing/here"):
        for method in ("GET", "OPTIONS"):
            response = await gateway.http(method, path, {"Origin": PAGE})
            assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.gen_test
async def test_a_star_in_the_list_is_never_a_star_in_an_answer(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway, "*")
    assert is_shared(await gateway.http("GET", "/ws", {"Origin": PAGE}))
    assert not is_shared(await gateway.http("GET", "/ws", {"Origin": "null"}))
    assert not is_shared(await gateway.http("GET", "/ws"))


@pytest.mark.gen_test
async def test_an_upgrade_carries_nothing_for_pages(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway, PAGE)
    for token, status in ((gateway.token(), 101), ("x", 401)):
        device = await gateway.upgrade(token, {"Origin": PAGE})
        assert device.response.status == status
        assert not {"vary", "access-control-allow-origin"} & set(device.response.headers)


@pytest.mark.gen_test
async def test_a_reload_changes_who_may_read(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    too_large = {"Origin": PAGE, "Content-Length": "99999999999"}
    assert not is_shared(await gateway.http("POST", TOKEN_PATH, {"Origin": PAGE}))
    assert not is_shared(await gateway.http("POST", TOKEN_PATH, too_large))
    await gateway.gateway.reload(dataclasses.replace(gateway.gateway.settings, allowed_origins=(PAGE,)))
    assert is_shared(await gateway.http("POST", TOKEN_PATH, {"Origin": PAGE}))
    assert is_shared(await gateway.http("POST", TOKEN_PATH, too_large))
