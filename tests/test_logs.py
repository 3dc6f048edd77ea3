"""The two formats of the log, and what neither may contain."""

from __future__ import annotations

import base64
import io
import json
import logging
import pty
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.ioloop import IOLoop

from cocoa_tornado import logs
from cocoa_tornado.logs_format import LogFormat, make_formatter
from cocoa_tornado.logs_redaction import redact
from testing.raw_device import UPGRADE

from .harness import Harness

FORMATS: tuple[LogFormat, ...] = ("text", "json")
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJkZXZpY2VfaWQiOiJkb2xsIn0.c2lnbmF0dXJl"

log = logging.getLogger("cocoa.test")


def configured(log_format: LogFormat, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(log_format, level, stream)
    return stream


def objects(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_of_text_has_time_level_event_logger_and_key_value_pairs() -> None:
    stream = configured("text")
    log.info("device connected", extra={"device_id": "doll", "conn": 7, "why": "two words"})
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z \[info +\] device connected +"
        r"\[cocoa\.test\] device_id=doll conn=7 why='two words'\n",
        stream.getvalue(),
    )


def test_a_line_of_json_is_one_compact_object() -> None:
    stream = configured("json")
    log.warning("device connected", extra={"device_id": "püppchen", "conn": 7})
    (line,) = objects(stream)
    timestamp = line.pop("timestamp")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", timestamp)
    expected = {"event": "device connected", "device_id": "püppchen", "conn": 7}
    assert line == expected | {"level": "warning", "logger": "cocoa.test"}
    assert stream.getvalue().endswith('"device_id":"püppchen","conn":7}\n')


def test_lines_of_other_libraries_have_the_same_form() -> None:
    stream = configured("json")
    logging.getLogger("some.library").warning("node %s is away", 3)
    (line,) = objects(stream)
    assert (line["event"], line["logger"]) == ("node 3 is away", "some.library")


@pytest.mark.parametrize("log_format", FORMATS)
def test_an_exception_comes_with_its_traceback(log_format: LogFormat) -> None:
    stream = configured(log_format)
    try:
        raise RuntimeError("the reason")
    except RuntimeError:
        log.exception("handler failed")
    text = objects(stream)[0]["exception"] if log_format == "json" else stream.getvalue()
    assert "Traceback (most recent call last)" in text
    assert "RuntimeError: the reason" in text


@pytest.mark.parametrize("log_format", FORMATS)
def test_what_looks_like_a_token_is_replaced_wherever_it_stands(log_format: LogFormat) -> None:
    stream = configured(log_format)
    log.info("event with %s", TOKEN)
    log.info("a url", extra={"url": "/ws?after=x&token=opaque-and-secret&y=1"})
    log.info("a header", extra={"header": "Authorization: Bearer opaque-and-secret"})
    log.info("nested", extra={"data": {"list": [TOKEN, ValueError(TOKEN)]}, "raw": TOKEN.encode()})
    log.info("half of one", extra={"part": TOKEN[:40]})
    try:
        raise RuntimeError(f"{TOKEN} refused")
    except RuntimeError:
        log.exception("failed")
    text = stream.getvalue()
    assert text.count("[token]") >= 7
    assert not any(part in text for part in (*TOKEN.split("."), "opaque-and-secret"))
    assert "after=x&token=[token]&y=1" in text


def part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


BLANKS = st.text(st.sampled_from(" \t\r\n"), max_size=9)
HEADERS = st.builds(
    lambda before, inside, name: f'{before}{{{inside}"{name}" :1, "alg":"HS256"}}'.encode(),
    BLANKS,
    BLANKS,
    st.text(st.characters(codec="utf-8", exclude_characters='"\\', min_codepoint=32), max_size=9),
)
SURROUNDINGS = [
    "{}",
    "/nowhere/{}",
    "GET {} HTTP",
    "('{}', 1)",
    "a.b {}",
    "a\n{}",
    "a\r\n{}",
    "\t{}",
    "proxy.example/{}!",
]


@given(HEADERS, st.sampled_from(SURROUNDINGS), st.binary(min_size=1), st.sampled_from(FORMATS), st.booleans())
def test_however_the_json_of_a_token_is_spelt_nothing_of_it_stands_in_a_line(
    header: bytes, surroundings: str, signature: bytes, log_format: LogFormat, colors: bool
) -> None:
    # A first member that the gateway would take, for every header of such a kind.
    payload = part(b'{"device_id":"doll","user_id":99}')
    token = f"{part(header)}.{payload}.{part(signature + b'-' * 24)}"
    text = surroundings.format(token)
    record = logging.makeLogRecord({"msg": "%s", "args": (text,), "levelname": "INFO", "name": "cocoa.test"})
    vars(record)["data"] = text
    line = make_formatter(log_format, colors).format(record)
    assert line.count("[token]") == 2
    assert not any(secret in line for secret in token.split("."))


@pytest.mark.parametrize("header", [b'{ "alg":"HS256"}', b'{\n  "alg": "ES256"\n}', b'\r\n {"alg":"EdDSA"}'])
@pytest.mark.parametrize("log_format", FORMATS)
def test_a_traceback_is_no_place_for_a_token_either(log_format: LogFormat, header: bytes) -> None:
    stream = configured(log_format)
    token = f"{part(header)}.{part(b'{ }')}.{part(b'signature')}"
    try:
        try:
            raise ValueError(f"first line\n{token}\nlast line")
        except ValueError as error:
            raise RuntimeError({"header": token}) from error
    except RuntimeError:
        log.exception("handler failed")
    text = stream.getvalue()
    assert text.count("[token]") == 2
    assert not any(secret in text for secret in token.split("."))
    assert "last line" in text


@pytest.mark.parametrize("whole", [True, False])
def test_a_payload_with_its_signature_is_as_good_as_the_token_and_goes_too(whole: bool) -> None:
    _, payload, signature = TOKEN.split(".")
    assert redact(f"cut: ...{payload}.{signature if whole else signature[:1]}") == "cut: ...[token]"


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1:8080", "[::1]:8080", "kafka-1.example:9092", "eyes-gateway-1.prod.example.com", "1.2.3-rc.1+e30"),
        *("ewok-cluster-01.prod.example", "ip-10-0-100-200.us-west-2.compute.internal", "Denver-1.C.I.e.example"),
        *("transcription.results.quarantine", "device.messages", "IEEE.802.11-2020", "conf/production.toml"),
        "b-1.cluster-name-with-many-words.a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6q7r8s9t0.kafka.eu-central-1.amazonaws.com",
        "cocoa_tornado.brokers.kafka_consumer.KafkaConsumer._on_partitions_revoked",
        "org.apache.kafka.common.KeyJournal.read keyJar.open eyJournal.close",
        "tests.web.test_handshake.test_a_newcomer_that_vanishes_in_the_challenge_leaves_no_slot_behind",
        "2026-01-01T10:30:00.123456Z 0.5s 99.9% e.g. i.e. ...",
        "Bearer tokens are good; token=; eyJhbGciOiJIUzI1NiJ9",
    ],
)
def test_names_of_hosts_modules_topics_and_versions_are_left_alone(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    ["eyJ", "eyJh.", "a.", "C", "\\n", "eyJ.a"],
)
def test_the_work_grows_with_the_length_of_a_line_and_not_with_its_square(text: str) -> None:
    # With the square, this would take many minutes.
    assert redact(text * 200_000).startswith((text[:1], "[token]"))


def test_a_control_character_cannot_command_the_terminal_or_forge_a_line() -> None:
    stream = configured("text")
    log.info("device connected", extra={"device_version": "1\x1b[2J\n2026-01-01 [info] forged", "x": "\x9b31m"})
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text[:-1].isprintable()


def test_the_level_hides_what_is_below_it_and_can_change() -> None:
    stream = configured("json", "warning")
    log.info("hidden")
    logs.set_level("debug")
    log.debug("shown")
    logging.getLogger("tornado.access").info("Tornado's own access log")
    assert [line["event"] for line in objects(stream)] == ["shown"]


def test_configuring_twice_does_not_double_the_lines() -> None:
    configured("text")
    stream = configured("text")
    log.info("once")
    assert stream.getvalue().count("once") == 1


def test_colours_are_for_terminals_only() -> None:
    for on_terminal in (True, False):
        controller, terminal = pty.openpty()
        with open(terminal, "w", encoding="utf-8") as tty, open(controller, "rb", buffering=0) as screen:
            plain = io.StringIO()
            logs.configure("text", "info", tty if on_terminal else plain)
            log.info("hello")
            tty.flush()
            written = screen.read(4096).decode() if on_terminal else plain.getvalue()
            assert "hello" in written
            assert ("\x1b[" in written) is on_terminal


def test_invalid_input_cannot_flood_the_log_and_the_next_minute_has_the_number_of_suppressed_lines() -> None:
    stream = configured("json")
    general = logging.getLogger("tornado.general")
    for number in range(25):
        general.warning("SSL Error on %s %s: %s", number, ("192.0.2.1", 5), "wrong version number")
    general.info("Malformed HTTP message from %s: %s", "192.0.2.1", "no colon in header line")
    log.info("ours are not counted")
    record = logging.makeLogRecord({"name": "tornado.general", "levelno": 30, "levelname": "WARNING"})
    record.msg, record.created = "SSL Error on 4", record.created + 60
    logging.getLogger().handle(record)
    lines = objects(stream)
    assert [line["event"][:9] for line in lines] == ["SSL Error"] * 10 + ["Malformed", "ours are ", "SSL Error"]
    assert lines[-1]["suppressed"] == 15


def test_errors_of_tornado_are_never_suppressed() -> None:
    stream = configured("json")
    for _ in range(25):
        logging.getLogger("tornado.general").error("Uncaught exception")
    assert len(objects(stream)) == 25


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.gen_test
async def test_no_handshake_leaves_a_token_in_the_log(io_loop: IOLoop, log_format: LogFormat) -> None:
    stream = configured(log_format, "debug")
    gateway = await Harness.start()
    tokens = [
        gateway.token("doll"),
        gateway.token("doll", lifetime_s=-3600),
        gateway.token("doll", secret="another secret of thirty-two bytes!!"),
        gateway.token("doll")[:-3],
        gateway.token("doll", user_id=None),
        "opaque-and-secret",
    ]
    for token in tokens:
        for target, headers in (
            (f"/ws?token={token}", {}),
            ("/ws", {"Authorization": f"Bearer {token}"}),
            ("/ws", {"Sec-WebSocket-Protocol": f"bearer, {token}"}),
            (f"/ws?after=x&token={token}", {}),
            (f"/nowhere/{token}", {}),
        ):
            device = await gateway.dial()
            await device.request("GET", target, UPGRADE | headers)
            await device.end()
        await gateway.http("POST", f"/api/v1/transcriptions?token={token}", {"Authorization": f"Bearer {token}"}, b"{")
    await gateway.stop()
    text = stream.getvalue()
    assert text.count("device connected") >= 1
    for token in tokens[:-1]:
        assert not any(part in text for part in token.split(".")[1:])
    assert text.count("opaque-and-secret") == 1  # a path is no place for a token


@pytest.mark.gen_test
async def test_lines_of_a_device_have_its_id_and_the_connections_number(io_loop: IOLoop) -> None:
    stream = configured("json")
    gateway = await Harness.start()
    device = await gateway.connect("doll")
    await device.close()
    await gateway.stop()
    lines = {line["event"]: line for line in objects(stream) if line["logger"] == "cocoa.device"}
    assert set(lines) == {"device connected", "device disconnected"}
    assert {(line["device_id"], line["conn"]) for line in lines.values()} == {
        ("doll", lines["device connected"]["conn"])
    }
    assert lines["device disconnected"]["outcome"] == "closed_by_device"
