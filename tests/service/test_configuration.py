"""What a gateway reads at its start, and again at a reload: keys, certificate and limits."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.errors import InvalidToken, KeyMaterialError, ServiceError
from cocoa_tornado.identity.http_fetch import HttpFetch
from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.rules.identity import TokenPolicy
from cocoa_tornado.service.gateway import Gateway
from cocoa_tornado.settings import Settings
from testing.certificates import served_serial, write_certificate
from testing.raw_device import CLOSE, TEXT

from ..harness import SECRET, Harness
from ..identity.material import jwk, jwks, private_pem, public_pem
from .running import Running, messages

NEW_SECRET = "the new secret of thirty-two bytes, or more"


async def reload(harness: Harness, **settings: Any) -> None:
    await harness.gateway.reload(dataclasses.replace(harness.gateway.settings, **settings))


@pytest.mark.gen_test
async def test_a_reload_takes_over_origins_limits_credentials_and_level(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await running.start()
    await gateway.raw("first")
    headers = {"Origin": "https://app.example"}
    assert (await gateway.upgrade(gateway.token(), headers)).response.status == 403
    credentials = (("key", "api-secret"),)
    await reload(gateway, allowed_origins=("https://app.example",), max_connections=2, api_credentials=credentials)
    assert (await gateway.upgrade(gateway.token(), headers)).response.status == 101
    assert (await gateway.upgrade(gateway.token("third"))).response.status == 503
    api = {"X-API-Key": "key", "X-API-Secret": "api-secret"}
    assert (await gateway.http("POST", "/api/v1/auth/token", api)).status == 200
    (line,) = messages(caplog, "reloaded")
    assert line["applied"] == "api_credentials,allowed_origins,max_connections"
    await reload(gateway, log_level="error")
    assert logging.getLogger().level == logging.ERROR


@pytest.mark.gen_test
async def test_a_reload_changes_the_limits_of_new_connections(running: Running) -> None:
    gateway = await running.start()
    await reload(gateway, max_message_bytes=10)
    device = await gateway.raw("doll")
    device.send(TEXT, b"x" * 11)
    assert (await device.read_until(CLOSE)).close_code == 1009


@pytest.mark.gen_test
async def test_after_a_change_of_secrets_old_tokens_pass_only_with_the_previous_secret(running: Running) -> None:
    gateway = await running.start()
    old, new = gateway.token("old"), gateway.token("new", secret=NEW_SECRET)
    connected = await gateway.connect("connected")
    assert (await gateway.upgrade(new)).response.status == 401
    await reload(gateway, jwt_secret=NEW_SECRET, jwt_previous_secrets=(SECRET,))
    assert (await gateway.upgrade(new)).response.status == 101
    assert (await gateway.upgrade(old)).response.status == 101
    await reload(gateway, jwt_previous_secrets=())
    assert (await gateway.upgrade(gateway.token("old"))).response.status == 401
    await connected.wait_closed()
    assert connected.close_code == 4401


@pytest.mark.gen_test
async def test_of_reloads_in_quick_succession_the_last_one_counts(running: Running) -> None:
    gateway = await running.start()
    await asyncio.gather(*(reload(gateway, max_connections=number) for number in (9, 8, 7)))
    assert gateway.gateway.settings.max_connections == gateway.gateway.presence.limits().total == 7


@pytest.mark.parametrize(
    "part",
    ["key_sources", "make_signer", "make_tls", "device_limits", "slot_limits", "speech_limits", "audio_limits"],
)
@pytest.mark.gen_test
async def test_a_reload_that_fails_halfway_changes_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(part)

    gateway = await running.start()
    service = gateway.gateway
    before = (service.parts.live.now, service.settings)
    monkeypatch.setattr(f"cocoa_tornado.service.configuration.{part}", fail)
    with pytest.raises(RuntimeError, match=part):
        await reload(gateway, jwt_secret=NEW_SECRET, max_connections=1, inbound_rate=1.0)
    assert (service.parts.live.now, service.settings) == before
    assert (await gateway.upgrade(gateway.token())).response.status == 101


def serve_keys_slowly(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Have every URL of keys answer once the event is set."""
    may_answer = asyncio.Event()

    async def fetch(self: HttpFetch, url: str) -> bytes:
        await may_answer.wait()
        return jwks(jwk("EC"))

    monkeypatch.setattr(HttpFetch, "__call__", fetch)
    return may_answer


@pytest.mark.gen_test
async def test_a_reload_that_is_cancelled_while_it_reads_keys_changes_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await running.start()
    before = gateway.gateway.parts.live.now
    may_answer = serve_keys_slowly(monkeypatch)
    reloading = asyncio.ensure_future(reload(gateway, jwt_key=("https://issuer.example/jwks",), max_connections=1))
    await asyncio.wait({reloading}, timeout=0)
    reloading.cancel()
    await asyncio.wait({reloading})
    may_answer.set()
    assert gateway.gateway.parts.live.now is before


@pytest.mark.gen_test
async def test_nobody_ever_sees_a_part_of_a_reload(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the URL that is dropped takes its time to end, which is after the reload has taken effect."""
    serve_keys_slowly(monkeypatch).set()
    old = {"api_credentials": (("key", "old"),), "allowed_origins": ("https://old.example",), "max_connections": 9}
    new = {"api_credentials": (("key", "new"),), "allowed_origins": ("https://new.example",), "max_connections": 8}
    gateway = await running.start(jwt_key=("https://issuer.example/jwks",), **old)
    web, token = gateway.gateway.wiring.web, es256_token("doll")
    seen = []

    def look() -> tuple[object, ...]:
        now = web.live.now
        try:
            verifies_old = now.keys.identify_now(token, time.time()) is not None
        except InvalidToken:
            verifies_old = False
        origins, limits = now.allowed_origins, gateway.gateway.presence.limits()
        return verifies_old, now.credentials["key"], origins, limits.total, web.devices.limits().inbound.per_s

    reloading = asyncio.ensure_future(reload(gateway, jwt_key=(), inbound_rate=7.0, **new))
    while not reloading.done():
        seen.append(look())
        await asyncio.sleep(0)
    seen.append(look())
    assert list(dict.fromkeys(seen)) == [
        (True, "old", ("https://old.example",), 9, 100.0),
        (False, "new", ("https://new.example",), 8, 7.0),
    ]


@pytest.mark.gen_test
async def test_a_reload_names_what_needs_a_restart_and_leaves_it(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await running.start()
    await reload(gateway, port=1, ping_interval_s=60.0)
    (line,) = messages(caplog, "reloaded")
    assert (line["applied"], line["needs_restart"]) == ("nothing new", "port,ping_interval")
    assert gateway.gateway.settings.ping_interval_s == 30.0


@pytest.mark.logs("cocoa.service", "^reload refused$")
@pytest.mark.gen_test
async def test_a_reload_that_is_refused_changes_nothing_and_says_so_once(
    running: Running, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    certificate = write_certificate(tmp_path)
    gateway = await running.start(tls_cert=certificate.cert, tls_key=certificate.key)
    before = gateway.gateway.settings
    broken: list[dict[str, Any]] = [
        {"jwt_key": (str(tmp_path / "missing.pem"),)},
        {
            "jwt_key": (str(certificate.cert),),
            "jwt_signing_key": tmp_path / "missing",
            "api_credentials": (("key", "api-secret"),),
        },
        {"inbound_rate": 5.0, "max_message_bytes": before.publish_bytes + 1},
    ]
    write_certificate(tmp_path)
    for change in broken:
        caplog.clear()
        await reload(gateway, jwt_secret=NEW_SECRET, **change)
        (line,) = [record for record in caplog.records if record.levelno >= logging.INFO]
        assert (line.getMessage(), line.levelno) == ("reload refused", logging.ERROR)
        assert "\n" not in vars(line)["error"]
        assert gateway.gateway.settings is before
        serial = await asyncio.to_thread(served_serial, gateway.port)
        assert serial == certificate.serial, "a new certificate came with a refused reload"


@pytest.mark.gen_test
async def test_a_certificate_that_breaks_while_keys_are_read_is_served_as_it_was_read(
    running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def fetch(self: HttpFetch, url: str) -> bytes:
        certificate.cert.write_text("half of a certificate")
        return jwks(jwk("EC"))

    monkeypatch.setattr(HttpFetch, "__call__", fetch)
    certificate = write_certificate(tmp_path)
    gateway = await running.start(tls_cert=certificate.cert, tls_key=certificate.key)
    certificate = write_certificate(tmp_path)
    await reload(gateway, jwt_key=("https://issuer.example/jwks",))
    assert await gateway.gateway.parts.live.now.keys.identify(es256_token("doll"), time.time())
    assert await asyncio.to_thread(served_serial, gateway.port) == certificate.serial


@pytest.mark.gen_test
async def test_key_files_are_read_again_though_their_names_have_not_changed(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(public_pem("EC"))
    gateway = await running.start(jwt_secret="", jwt_key=(str(path),))
    token = es256_token("doll")
    assert (await gateway.upgrade(token)).response.status == 101
    path.write_bytes(public_pem("Ed25519"))
    await reload(gateway)
    assert (await gateway.upgrade(es256_token("other"))).response.status == 401


@pytest.mark.logs("cocoa.service", "^reload refused$")
@pytest.mark.gen_test
async def test_a_new_certificate_is_served_after_a_reload_and_a_bad_one_is_not(
    running: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = write_certificate(tmp_path)
    gateway = await running.start(tls_cert=first.cert, tls_key=first.key)
    assert await asyncio.to_thread(served_serial, gateway.port) == first.serial
    second = write_certificate(tmp_path)
    await reload(gateway)
    assert await asyncio.to_thread(served_serial, gateway.port) == second.serial
    second.key.write_bytes(write_certificate(tmp_path, "other").key.read_bytes())
    await reload(gateway)
    assert len(messages(caplog, "reload refused")) == 1
    assert await asyncio.to_thread(served_serial, gateway.port) == second.serial


def test_a_certificate_that_cannot_be_used_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    good, other = write_certificate(tmp_path), write_certificate(tmp_path, "other")
    encrypted = write_certificate(tmp_path, "encrypted", password=b"secret")
    (tmp_path / "rubbish.pem").write_text("rubbish")
    for cert, key in (
        (good.cert, other.key),
        (good.key, good.key),
        (tmp_path / "rubbish.pem", good.key),
        (tmp_path / "missing.pem", good.key),
        (encrypted.cert, encrypted.key),
    ):
        with pytest.raises(ServiceError) as raised:
            Gateway(Settings(jwt_secret=SECRET, tls_cert=cert, tls_key=key))
        assert str(cert) in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.gen_test
async def test_a_key_that_cannot_be_read_is_an_error_before_the_port_is_taken(tmp_path: Path, io_loop: IOLoop) -> None:
    gateway = Gateway(Settings(port=0, jwt_key=(str(tmp_path / "missing.pem"),)))
    with pytest.raises(KeyMaterialError, match=r"missing\.pem"):
        await gateway.start()
    assert gateway.port == 0


def test_a_signing_key_that_cannot_be_read_is_an_error_before_anything_is_opened(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    with pytest.raises(KeyMaterialError, match=r"missing\.pem"):
        Gateway(Settings(jwt_secret=SECRET, api_credentials=(("key", "secret"),), jwt_signing_key=missing))


def es256_token(device_id: str) -> str:
    signer = Signer.from_pem(private_pem("EC"), "test")
    return mint(TokenRequest(device_id, 1, lifetime_s=60), signer, TokenPolicy(), time.time())
