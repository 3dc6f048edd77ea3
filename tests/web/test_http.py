"""Contract section 2 but for the WebSocket: health, readiness, metrics, tokens, publishing, errors, proxies."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
import time
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.brokers.port import BrokerState, BrokerStatus, QuarantineState
from cocoa_tornado.errors import BrokerError
from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.port import PresenceState, PresenceStatus
from testing.raw_device import UPGRADE, Response

from ..harness import RESULTS, Harness
from ..profiles import examples
from .conftest import StartGateway

TOKEN_PATH, AUDIO_PATH, PUBLISH_PATH = "/api/v1/auth/token", "/api/v1/audio/stream", "/api/v1/transcriptions"
CREDENTIALS = (("backend", "s3cret:with a colon"), ("other", "another secret"))
GOOD = {"X-API-Key": "backend", "X-API-Secret": "s3cret:with a colon"}
LOOPBACK = (ip_network("127.0.0.0/8"),)

METRICS = {
    "cocoa_connections": "gauge",
    "cocoa_handshakes": "counter",
    "cocoa_connections_closed": "counter",
    "cocoa_messages_routed": "counter",
    "cocoa_messages_unknown_device": "counter",
    "cocoa_messages_dropped": "counter",
    "cocoa_records_quarantined": "counter",
    "cocoa_delivery_latency_seconds": "histogram",
    "cocoa_consumer_lag_records": "gauge",
    "cocoa_outbox_overflows": "counter",
    "cocoa_duplicate_challenges": "counter",
    "cocoa_duplicate_evictions": "counter",
    "cocoa_loop_lag_seconds": "histogram",
}


def is_error(response: Response, status: int, message: str | None = None) -> bool:
    """The one form of an error: compact JSON, one string, nothing else."""
    assert response.status == status, response
    assert response.headers["content-type"].startswith("application/json")
    body = json.loads(response.body)
    assert list(body) == ["message"]
    assert isinstance(body["message"], str)
    assert response.body == json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    return message is None or body["message"] == message


def access_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.name == "cocoa.access"]


class TroubledBroker(MemoryBroker):
    """A broker in the state that the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.state: BrokerState | None = None
        self.quarantine = QuarantineState.READY
        self.full = False
        self.refuses = False
        self.is_mute = False

    def status(self) -> BrokerStatus:
        status = super().status()
        if self.state is None:
            return dataclasses.replace(status, quarantine=self.quarantine)
        return BrokerStatus(self.state, "kafka-1.internal:9092 refused the password")

    def can_write(self) -> bool:
        return not self.full and super().can_write()

    def publish(self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes] | None = None) -> Any:
        if self.refuses:
            raise BrokerError("no")
        if self.is_mute:
            return asyncio.get_running_loop().create_future()
        return super().publish(topic, key, value, headers)


# -- health and readiness


@pytest.mark.gen_test
async def test_health_has_the_body_of_the_contract_and_the_time_in_utc(gateway: Harness) -> None:
    response = await gateway.http("GET", "/api/v1/health")
    assert response.status == 200
    found = re.fullmatch(
        rb'\{"status":"healthy","timestamp":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)","service":"audio-streaming"\}',
        response.body,
    )
    assert found is not None
    said = time.strptime(found[1].decode(), "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(said) - time.mktime(time.gmtime())) < 60


@pytest.mark.gen_test
async def test_no_answer_names_the_server_software(gateway: Harness) -> None:
    for path in ("/api/v1/health", "/nowhere", "/metrics"):
        assert "server" not in (await gateway.http("GET", path)).headers


@pytest.mark.gen_test
async def test_ready_has_an_entry_for_every_part(gateway: Harness) -> None:
    response = await gateway.http("GET", "/api/v1/ready")
    assert response.status == 200
    body = json.loads(response.body)
    assert body["status"] == "ready"
    assert "message" not in body
    assert {"broker", "quarantine", "mailbox", "presence", "speech"} <= set(body["parts"])
    assert all(part["ok"] for part in body["parts"].values())
    assert b": " not in response.body


@pytest.mark.gen_test
async def test_a_server_that_does_not_reach_the_others_is_not_ready(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = PresenceStatus(PresenceState.READY, "a permission is missing", 0.1, reaches_others=False)
    monkeypatch.setattr(gateway.gateway.presence, "status", lambda: status)
    response = await gateway.http("GET", "/api/v1/ready")
    assert response.status == 503
    assert json.loads(response.body)["parts"]["presence"] == {"ok": False, "state": "disconnected"}


@pytest.mark.gen_test
async def test_ready_is_a_503_that_names_the_part_and_keeps_the_details_to_itself(start_gateway: StartGateway) -> None:
    broker = TroubledBroker()
    gateway = await start_gateway(broker, retry_after_s=1.2)
    broker.state = BrokerState.CONNECTING
    response = await gateway.http("GET", "/api/v1/ready")
    body = json.loads(response.body)
    assert (response.status, response.headers["retry-after"]) == (503, "2")
    assert "broker" in body["message"]
    assert body["parts"]["broker"] == {"ok": False, "state": "connecting"}
    assert b"kafka-1" not in response.body
    assert (await gateway.http("GET", "/api/v1/health")).status == 200
    broker.state = None
    assert (await gateway.http("GET", "/api/v1/ready")).status == 200


@pytest.mark.gen_test
async def test_a_quarantine_that_takes_no_copies_shows_in_ready_which_stays_200(start_gateway: StartGateway) -> None:
    broker = TroubledBroker()
    gateway = await start_gateway(broker)
    broker.quarantine = QuarantineState.UNAVAILABLE
    response = await gateway.http("GET", "/api/v1/ready")
    body = json.loads(response.body)
    assert (response.status, body["status"]) == (200, "ready")
    assert "message" not in body
    assert body["parts"]["quarantine"] == {"ok": False, "state": "unavailable"}
    broker.quarantine = QuarantineState.CHECKING
    body = json.loads((await gateway.http("GET", "/api/v1/ready")).body)
    assert body["parts"]["quarantine"] == {"ok": True, "state": "checking"}


# -- metrics


@pytest.mark.gen_test
async def test_the_metrics_page_has_every_metric_and_no_device(gateway: Harness) -> None:
    device = await gateway.raw("doll-in-the-log")
    await gateway.publish("doll-in-the-log", "x", timestamp="2024-01-15T10:30:00Z")
    await gateway.publish("nobody-there", "x")
    await gateway.gateway.broker.publish(RESULTS, "doll-in-the-log", b"rubbish")
    await device.read_frame()
    await gateway.http("GET", "/ws", UPGRADE)
    response = await gateway.http("GET", "/metrics")
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(response.body.decode())}
    assert {name: families[name].type for name in METRICS} == METRICS
    assert not re.search(rb"doll-in|nobody|99", re.sub(rb"(?m) \S+$", b"", response.body))
    labels = {(s.name, *s.labels.values()) for family in families.values() for s in family.samples}
    assert ("cocoa_handshakes_total", "accepted") in labels
    assert ("cocoa_handshakes_total", "missing") in labels
    values = await gateway.metrics()
    assert values["cocoa_connections"] == 1
    assert values["cocoa_messages_routed_total"] == 1
    assert values["cocoa_messages_unknown_device_total"] == 1
    assert values["cocoa_delivery_latency_seconds_count"] == 1
    assert sum(value for name, value in values.items() if name.startswith("cocoa_records_quarantined_total")) == 1


@pytest.mark.gen_test
async def test_process_metrics_are_on_the_page(gateway: Harness) -> None:
    assert (await gateway.metrics())["process_resident_memory_bytes"] > 0


# -- the token endpoint


@pytest.mark.gen_test
async def test_a_token_of_the_endpoint_opens_a_websocket(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(api_credentials=CREDENTIALS)
    response = await gateway.http("POST", TOKEN_PATH, GOOD)
    assert response.status == 200
    assert re.fullmatch(rb'\{"token":"[\w.-]+","type":"Bearer"\}', response.body)
    assert response.headers["cache-control"] == "no-store"
    device = await gateway.upgrade(json.loads(response.body)["token"])
    assert device.response.status == 101
    assert gateway.gateway.hub.is_device_connected("backend")


@pytest.mark.gen_test
async def test_the_body_says_for_which_device_the_token_is(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(api_credentials=CREDENTIALS)
    body = '{"device_id":"müller","user_id":7,"device_version":"2.1","groups":["g"]}'.encode()
    response = await gateway.http("POST", TOKEN_PATH, GOOD, body)
    device = await gateway.upgrade(json.loads(response.body)["token"])
    assert device.response.status == 101
    assert gateway.gateway.hub.is_device_connected("müller")


@pytest.mark.parametrize(("key", "secret"), [("schlüssel", "voilà"), ("Å", "пароль"), ("k", "\U0001f511")])
@pytest.mark.gen_test
async def test_credentials_beyond_ascii_are_compared_as_the_utf_8_that_clients_send(
    start_gateway: StartGateway, key: str, secret: str
) -> None:
    gateway = await start_gateway(api_credentials=((key, secret), ("other", "another secret")))
    device = await gateway.dial()
    response = await device.request("POST", TOKEN_PATH, {"X-API-Key": key, "X-API-Secret": secret})
    assert response.status == 200
    assert (await gateway.upgrade(json.loads(response.body)["token"])).response.status == 101
    assert gateway.gateway.hub.is_device_connected(key)
    response = await device.request("POST", TOKEN_PATH, {"X-API-Key": key, "X-API-Secret": secret + "\u00e4"})
    assert is_error(response, 401, "Invalid credentials")


@given(
    st.dictionaries(
        st.sampled_from(["device_id", "user_id", "device_version", "groups", "exp", "iss", "jti", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=3,
        ),
    )
)
@examples(60)
def test_whatever_the_body_asks_for_the_token_is_good_for_a_handshake_or_it_is_a_400(asked: dict[str, object]) -> None:
    async def ask() -> None:
        gateway = await Harness.start(api_credentials=CREDENTIALS, access_log=False)
        try:
            response = await gateway.http("POST", TOKEN_PATH, GOOD, json.dumps(asked).encode())
            if response.status != 400:
                assert (await gateway.upgrade(json.loads(response.body)["token"])).response.status == 101
        finally:
            await gateway.stop()

    asyncio.run(ask())


@pytest.mark.gen_test
async def test_wrong_credentials_are_a_401_with_its_exact_body(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(api_credentials=CREDENTIALS)
    wrong: list[dict[str, str]] = [
        {},
        {"X-API-Key": "backend"},
        {"X-API-Secret": "another secret"},
        GOOD | {"X-API-Secret": "s3cret"},
        GOOD | {"X-API-Secret": "another secret"},
        GOOD | {"X-API-Key": "Backend"},
        GOOD | {"X-API-Secret": "\u00fc"},
    ]
    for headers in wrong:
        response = await gateway.http("POST", TOKEN_PATH, headers, b'{"device_id":"x"}')
        assert (response.status, response.body) == (401, b'{"message":"Invalid credentials"}')
        assert response.headers["www-authenticate"] == "ApiKey"


@pytest.mark.gen_test
async def test_the_token_endpoint_is_a_404_where_no_credentials_are_configured(gateway: Harness) -> None:
    assert is_error(await gateway.http("POST", TOKEN_PATH, GOOD), 404)


@pytest.mark.gen_test
async def test_a_bad_body_is_a_400_and_never_a_token(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(api_credentials=(*CREDENTIALS, ("k" * 129, "too long for a device id")))
    bad = [
        b"{",
        b"\xff",
        b"[]",
        b'"x"',
        b"[" * 10_000,
        b'{"device_id":""}',
        b'{"device_id":7}',
        b'{"device_id":"a\\u0000b"}',
        b'{"device_id":"\\ud800"}',
        b'{"device_id":"' + b"x" * 129 + b'"}',
        b'{"user_id":true}',
        b'{"user_id":1.5}',
        b'{"user_id":' + b"9" * 10_000 + b"}",
        b'{"device_version":1}',
        b'{"groups":"g"}',
        b'{"groups":[1]}',
        b'{"user_id":"\\ud800"}',
        b'{"device_version":"1.0\\udfff"}',
        b'{"groups":["g","\\ud800"]}',
        b'{"device_version":"' + b"1" * 13_312 + b'"}',
    ]
    for body in bad:
        assert is_error(await gateway.http("POST", TOKEN_PATH, GOOD, body), 400), body
    headers = {"X-API-Key": "k" * 129, "X-API-Secret": "too long for a device id"}
    assert is_error(await gateway.http("POST", TOKEN_PATH, headers), 400, "Invalid device_id")
    assert (await gateway.http("POST", TOKEN_PATH, headers, b'{"device_id":"x","user_id":7}')).status == 200


@pytest.mark.gen_test
async def test_a_bad_body_is_told_which_claim_is_wrong(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(api_credentials=CREDENTIALS)
    for claim in ("device_id", "user_id", "device_version", "groups"):
        body = json.dumps({claim: None}).encode()
        assert is_error(await gateway.http("POST", TOKEN_PATH, GOOD, body), 400, f"Invalid {claim}")
    too_long = json.dumps({"device_version": "1" * 13_312}).encode()
    assert is_error(await gateway.http("POST", TOKEN_PATH, GOOD, too_long), 400, "Token too long")


# -- audio and publishing


@pytest.mark.gen_test
async def test_the_audio_stream_is_a_501_while_speech_is_off(gateway: Harness) -> None:
    headers = {"Authorization": f"Bearer {gateway.token()}", "Content-Type": "audio/wav"}
    assert is_error(await gateway.http("POST", AUDIO_PATH, headers, b"RIFF"), 501)


@pytest.mark.gen_test
async def test_a_device_publishes_a_record_to_itself(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    headers = {"Authorization": f"Bearer {gateway.token('doll')}"}
    response = await gateway.http("POST", PUBLISH_PATH, headers, b'{"device_id": "doll", "text": "hello"}')
    assert (response.status, response.body) == (202, b'{"success":true}')
    assert (await device.read_frame()).payload == b'{"type":"transcription","device_id":"doll","text":"hello"}'


@pytest.mark.gen_test
async def test_publishing_needs_a_token_of_the_very_device(gateway: Harness) -> None:
    body = b'{"device_id":"doll","text":"x"}'
    for headers, status in (
        ({}, 401),
        ({"Authorization": "Bearer rubbish"}, 401),
        ({"Authorization": f"Bearer {gateway.token('other')}"}, 403),
    ):
        response = await gateway.http("POST", PUBLISH_PATH, headers, body)
        assert is_error(response, status)
        assert (response.headers.get("www-authenticate") == "Bearer") is (status == 401)
    assert is_error(await gateway.http("POST", f"{PUBLISH_PATH}?token={gateway.token('doll')}", {}, body), 401)
    assert gateway.broker.records(RESULTS) == []


@pytest.mark.gen_test
async def test_a_record_that_would_be_set_aside_is_a_400(gateway: Harness) -> None:
    headers = {"Authorization": f"Bearer {gateway.token('doll')}"}
    for body in (b"", b"{", b"[]", b"{}", b'{"device_id":7}'):
        assert is_error(await gateway.http("POST", PUBLISH_PATH, headers, body), 400), body
    assert gateway.broker.records(RESULTS) == []


@pytest.mark.gen_test
async def test_publishing_is_a_404_where_it_is_off(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(http_publish="off")
    headers = {"Authorization": f"Bearer {gateway.token('doll')}"}
    assert is_error(await gateway.http("POST", PUBLISH_PATH, headers, b'{"device_id":"doll"}'), 404)


@pytest.mark.gen_test
async def test_publishing_is_a_503_with_retry_after_while_the_broker_is_away_or_full(
    start_gateway: StartGateway,
) -> None:
    broker = TroubledBroker()
    gateway = await start_gateway(broker)
    headers = {"Authorization": f"Bearer {gateway.token('doll')}"}
    for trouble, value in (("state", BrokerState.CONNECTING), ("full", True), ("refuses", True)):
        setattr(broker, trouble, value)
        response = await gateway.http("POST", PUBLISH_PATH, headers, b'{"device_id":"doll"}')
        assert is_error(response, 503)
        assert response.headers["retry-after"] == "5"
        setattr(broker, trouble, None)


@pytest.mark.gen_test
async def test_publishing_is_a_503_when_the_broker_does_not_acknowledge_in_time(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocoa_tornado.web.publish_handler.PATIENCE_S", 0.1)
    broker = TroubledBroker()
    gateway = await start_gateway(broker)
    broker.is_mute = True
    headers = {"Authorization": f"Bearer {gateway.token('doll')}"}
    response = await gateway.http("POST", PUBLISH_PATH, headers, b'{"device_id":"doll"}')
    assert is_error(response, 503)
    assert response.headers["retry-after"] == "5"


@pytest.mark.gen_test
async def test_a_long_path_is_cut_in_the_log(gateway: Harness, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cocoa.access"):
        assert is_error(await gateway.http("GET", "/" + "x" * 10_000), 404)
    (line,) = access_lines(caplog)
    assert line["path"] == "/" + "x" * 255 + "..."


# -- errors


@pytest.mark.gen_test
async def test_unknown_routes_are_a_404_whatever_the_method(gateway: Harness) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        for path in ("/", "/nowhere", "/ws/", "/api/v1/", "/api/v1/health/", "/favicon.ico", "//", "/%00", "/../etc"):
            assert is_error(await gateway.http(method, path), 404, "Not Found"), (method, path)


@pytest.mark.gen_test
async def test_a_wrong_method_is_a_405_that_names_the_right_ones(gateway: Harness) -> None:
    for method, path, allowed in (
        ("POST", "/api/v1/health", "GET"),
        ("DELETE", "/api/v1/ready", "GET"),
        ("PUT", "/metrics", "GET"),
        ("GET", TOKEN_PATH, "POST"),
        ("GET", AUDIO_PATH, "POST"),
        ("PATCH", PUBLISH_PATH, "POST"),
        ("BREW", "/api/v1/health", "GET"),
    ):
        response = await gateway.http(method, path)
        assert is_error(response, 405, "Method Not Allowed")
        assert allowed in response.headers["allow"].split(", ")


@pytest.mark.gen_test
@pytest.mark.logs("cocoa.http", "^handler failed$")
@pytest.mark.logs("cocoa.access", "^request$")
async def test_a_handler_that_fails_is_a_500_without_details_and_one_line_of_the_log(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> bytes:
        raise RuntimeError("the reason")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(gateway.gateway.broker, "status", fail)
    response = await gateway.http("GET", "/api/v1/ready?token=very-secret")
    assert is_error(response, 500, "Internal Server Error")
    (line,) = [record for record in caplog.records if record.getMessage() == "handler failed"]
    assert (line.levelname, vars(line)["path"]) == ("ERROR", "/api/v1/ready")
    assert line.exc_info is not None
    assert "very-secret" not in caplog.text
    assert (await gateway.http("GET", "/api/v1/health")).status == 200


@pytest.mark.gen_test
async def test_a_head_request_has_no_body(gateway: Harness) -> None:
    device = await gateway.dial()
    device.writer.write(b"HEAD /api/v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await device.read_to_end()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")


# -- the access log, and proxies


@pytest.mark.gen_test
async def test_the_access_log_has_a_line_for_each_request_without_the_query(
    gateway: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await gateway.http("GET", "/nowhere?token=very-secret")
    await gateway.http("GET", "/api/v1/health")
    device = await gateway.raw("doll")
    await gateway.upgrade("bad.token.here")
    await gateway.http("POST", "/ws?token=very-secret", {"Content-Length": "99999999"})
    lines = access_lines(caplog)
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("GET", "/nowhere", 404),
        ("GET", "/ws", 101),
        ("GET", "/ws", 401),
        ("POST", "/ws", 405),
    ]
    assert lines[1]["device_id"] == "doll"
    (connected,) = [vars(record) for record in caplog.records if record.getMessage() == "device connected"]
    assert lines[1]["conn"] == connected["conn"]
    assert [line for line in lines if "conn" in line] == [lines[1]]
    device.close()
    assert {line["remote_ip"] for line in lines} == {"127.0.0.1"}
    assert "very-secret" not in str([vars(record) for record in caplog.records])


@pytest.mark.gen_test
async def test_the_access_log_can_be_off(start_gateway: StartGateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    gateway = await start_gateway(access_log=False)
    await gateway.http("GET", "/nowhere")
    assert (await gateway.http("POST", "/nowhere", {"Content-Length": "99999999"})).status == 404
    assert access_lines(caplog) == []


@pytest.mark.gen_test
async def test_forwarded_addresses_of_strangers_are_not_believed(
    gateway: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await gateway.http("GET", "/nowhere", {"X-Forwarded-For": "203.0.113.9"})
    assert [line["remote_ip"] for line in access_lines(caplog)] == ["127.0.0.1"]


@pytest.mark.gen_test
async def test_a_trusted_proxy_says_who_the_client_is_for_each_request(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await start_gateway(trusted_proxies=LOOPBACK)
    proxy = await gateway.dial()
    for forwarded in ("203.0.113.9", "6.6.6.6, 203.0.113.8, 127.0.0.5", "rubbish"):
        await proxy.request("GET", "/nowhere", {"X-Forwarded-For": forwarded})
    await proxy.request("GET", "/nowhere")
    await proxy.request("POST", "/metrics", {"X-Forwarded-For": "203.0.113.7"})
    addresses = [line["remote_ip"] for line in access_lines(caplog)]
    assert addresses == ["203.0.113.9", "203.0.113.8", "127.0.0.1", "127.0.0.1", "203.0.113.7"]


@pytest.mark.gen_test
async def test_the_forwarded_host_counts_for_the_origin_behind_a_trusted_proxy_only(
    start_gateway: StartGateway,
) -> None:
    headers = {"Origin": "https://gateway.example", "X-Forwarded-Host": "gateway.example"}
    stranger = await start_gateway()
    assert (await stranger.upgrade(stranger.token("a"), headers)).response.status == 403
    proxied = await start_gateway(trusted_proxies=LOOPBACK)
    assert (await proxied.upgrade(proxied.token("a"), headers)).response.status == 101
    for foreign in ("https://evil", "http://localhost"):  # the latter is the host that the proxy itself has asked for
        assert (await proxied.upgrade(proxied.token("b"), headers | {"Origin": foreign})).response.status == 403


# -- several gateways


@pytest.mark.gen_test
async def test_two_gateways_in_one_process_share_nothing(start_gateway: StartGateway) -> None:
    one, two = await start_gateway(drain_grace_s=0.6), await start_gateway(max_connections=7)
    first, second = await one.raw("doll"), await two.raw("doll")
    await one.publish("doll", "for the first")
    await one.publish("nobody", "x")
    assert b"for the first" in (await first.read_frame()).payload
    await two.publish("doll", "for the second")
    assert b"for the second" in (await second.read_frame()).payload
    assert (await one.metrics())["cocoa_messages_unknown_device_total"] == 1
    assert (await two.metrics())["cocoa_messages_unknown_device_total"] == 0
    assert one.gateway.presence.limits() == SlotLimits()
    await one.gateway.drain_and_stop()
    assert len(two.gateway.hub) == 1
    assert (await two.http("GET", "/api/v1/ready")).status == 200
