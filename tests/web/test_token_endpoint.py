"""The token endpoint against those who guess, and bodies that can be read in two ways."""

from __future__ import annotations

import json
import logging
import time
from ipaddress import ip_network
from typing import Any

import pytest

from testing.raw_device import Response

from ..harness import Harness
from .conftest import StartGateway

PATH = "/api/v1/auth/token"
GOOD = {"X-API-Key": "backend", "X-API-Secret": "a secret"}
WRONG = {"X-API-Key": "backend", "X-API-Secret": "a guess"}
BURST = 10  # web/token_handler.py
BURST_LINE = pytest.mark.logs("cocoa.http", "too many wrong credentials")


async def start(start_gateway: StartGateway, **settings: Any) -> Harness:
    proxies = (ip_network("127.0.0.0/8"),)
    return await start_gateway(api_credentials=(("backend", "a secret"),), trusted_proxies=proxies, **settings)


async def ask(gateway: Harness, headers: dict[str, str], client: str = "192.0.2.1", body: bytes = b"") -> Response:
    return await gateway.http("POST", PATH, headers | {"X-Forwarded-For": client}, body)


async def use_up(gateway: Harness, client: str) -> None:
    for _ in range(BURST):
        assert (await ask(gateway, WRONG, client)).status == 401


@pytest.mark.gen_test
@BURST_LINE
async def test_too_many_wrong_credentials_are_a_429_that_says_when_to_come_again(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    await use_up(gateway, "192.0.2.1")
    for headers in (WRONG, GOOD):  # to let right ones through would tell which guess was right
        response = await ask(gateway, headers)
        assert (response.status, response.body) == (429, b'{"message":"Too many wrong credentials"}')
        assert 1 <= int(response.headers["retry-after"]) <= 6
    counted = gateway.gateway.counters.token_requests
    assert counted == {"wrong_credentials": BURST, "limited": 2}


@pytest.mark.gen_test
async def test_requests_without_credentials_are_no_guesses(start_gateway: StartGateway) -> None:
    """Any web page can make its visitor's browser send them, and would lock the visitor out."""
    gateway = await start(start_gateway)
    for _ in range(BURST + 1):
        assert (await ask(gateway, {})).status == 401
    assert (await ask(gateway, GOOD)).status == 200


@pytest.mark.gen_test
@BURST_LINE
async def test_nobody_is_refused_for_the_guesses_of_another_address(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    await use_up(gateway, "192.0.2.1")
    await use_up(gateway, "2001:db8:1:1::1")
    for client, status in (
        ("192.0.2.2", 200),
        ("2001:db8:1:2::1", 200),
        ("::1", 200),
        ("::ffff:192.0.2.1", 429),  # the same, in other words
        ("2001:db8:1:1:ffff::7", 429),  # of the same /64
    ):
        assert (await ask(gateway, GOOD, client)).status == status, client


@pytest.mark.gen_test
async def test_right_credentials_are_never_limited_and_give_no_guesses_back(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    for _ in range(BURST - 1):
        assert (await ask(gateway, WRONG)).status == 401
        assert (await ask(gateway, GOOD)).status == 200
    for _ in range(3 * BURST):
        assert (await ask(gateway, GOOD)).status == 200
        assert (await ask(gateway, GOOD, body=b"{")).status == 400
    assert gateway.gateway.counters.token_requests["wrong_credentials"] == BURST - 1


@pytest.mark.gen_test
@BURST_LINE
async def test_after_a_while_a_limited_client_may_try_again(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start(start_gateway)
    await use_up(gateway, "192.0.2.1")
    wait_s = int((await ask(gateway, GOOD)).headers["retry-after"])
    monkeypatch.setattr(gateway.gateway.wiring.devices, "clock", lambda: time.monotonic() + wait_s)
    assert (await ask(gateway, GOOD)).status == 200


@pytest.mark.gen_test
@BURST_LINE
async def test_a_burst_of_guesses_is_one_line_of_the_log(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await start(start_gateway)
    await use_up(gateway, "192.0.2.1")
    caplog.clear()
    for _ in range(50):
        assert (await ask(gateway, WRONG)).status == 429
    assert [record for record in caplog.records if record.name.startswith("cocoa.")] == []
    await use_up(gateway, "192.0.2.9")
    lines = [record for record in caplog.records if record.name == "cocoa.http"]
    assert [(line.getMessage(), vars(line)["remote_ip"]) for line in lines] == [
        ("too many wrong credentials", "192.0.2.9")
    ]


@pytest.mark.gen_test
@BURST_LINE
async def test_bursts_from_any_number_of_addresses_are_a_bounded_number_of_lines(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start(start_gateway, access_log=False)
    now = time.monotonic()
    monkeypatch.setattr(gateway.gateway.wiring.devices, "clock", lambda: now)
    device = await gateway.dial()
    for client in range(20):
        for _ in range(BURST):
            await device.request("POST", PATH, WRONG | {"X-Forwarded-For": f"192.0.2.{client}"})
    lines = [record for record in caplog.records if record.getMessage() == "too many wrong credentials"]
    assert len(lines) == 10


@pytest.mark.gen_test
async def test_a_body_that_names_a_member_twice_is_a_400_at_any_depth(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    for body in (
        b'{"device_id":"a","device_id":"b"}',
        b'{"device_id":"a","user_id":1,"user_id":1}',
        b'{"device_id":"a","unknown":1,"unknown":2}',
        b'{"device_id":"a","\\u0064evice_id":"b"}',
        b'{"device_id":"a","unknown":[{"x":1,"x":2}]}',
    ):
        response = await ask(gateway, GOOD, body=body)
        assert (response.status, response.body) == (400, b'{"message":"Body names a member twice"}')


@pytest.mark.gen_test
async def test_a_body_over_16_kib_is_a_413_and_is_not_decoded(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    fits = json.dumps({"device_id": "doll"}).encode().ljust(16 * 1024)
    assert (await ask(gateway, GOOD, body=fits)).status == 200
    assert (await ask(gateway, GOOD, body=fits + b" ")).status == 413
