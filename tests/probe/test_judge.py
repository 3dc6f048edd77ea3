"""What the judges accept, and the wording of their objections."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.probe.judge import (
    compact_json,
    described,
    described_close,
    expected_message,
    judge_audio,
    judge_error_body,
    judge_handshake,
    judge_health,
    judge_message,
    judge_options_removed,
    judge_plain_get,
    judge_priorities,
    judge_ready,
    judge_received,
    judge_refusal,
    quoted,
    session_of,
    wasteful,
)
from cocoa_tornado.probe.wire import Response, Upgrade

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)
RECORD: dict[str, object] = {"session_id": "s1", "type": "x", "user_id": 99, "device_id": "doll", "text": "caf\u00e9 /"}
MESSAGE = '{"type":"transcription","session_id":"s1","user_id":99,"device_id":"doll","text":"caf\u00e9 /"}'
HEALTH = b'{"status":"healthy","timestamp":"2026-01-02T03:04:05Z","service":"audio-streaming"}'


def refused(status: int = 401, message: str = "Invalid JWT token", **headers: str) -> Response:
    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Response(status, pairs, compact_json({"message": message}).encode())


# --- JSON ----------------------------------------------------------------------------------------------------------


@given(JSON_VALUES)
def test_compact_json_is_never_called_wasteful(value: object) -> None:
    assert wasteful(compact_json(value)) is None


@given(st.dictionaries(st.text(), JSON_VALUES, min_size=2, max_size=3))
def test_blanks_between_tokens_are_wasteful(value: dict[str, object]) -> None:
    assert wasteful(json.dumps(value, ensure_ascii=False)) == "has blanks between its tokens"


@given(st.text(alphabet=st.characters(min_codepoint=0x80, exclude_categories=["Cs"]), min_size=1))
def test_escapes_of_letters_are_wasteful(text: str) -> None:
    assert wasteful(json.dumps(text)) is not None


@pytest.mark.parametrize("text", [r'"\ud83d"', r'"\u0001"', r'"\"\\\n\t"', '"a b\u2028"', r'"\\u00e9"'])
def test_escapes_that_json_requires_are_not_wasteful(text: str) -> None:
    assert wasteful(text) is None


def test_an_escaped_slash_is_wasteful() -> None:
    assert wasteful(r'"a\/b"') is not None


# --- Refusals ------------------------------------------------------------------------------------------------------


def test_the_exact_refusal_passes() -> None:
    response = refused(WWW_Authenticate='Bearer realm="x"', Retry_After="5")
    assert judge_refusal(response, 401, "Invalid JWT token", bearer=True, retry_after=True) is None


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (Response(101), "was let in: answered 101, expected 401"),
        (refused(403), 'answered 403 {"message":"Invalid JWT token"}, expected 401'),
        (refused(message="no"), 'answered 401 {"message":"no"}, expected the body {"message":"Invalid JWT token"}'),
        (refused(), "answered 401 without the header WWW-Authenticate: Bearer"),
        (refused(WWW_Authenticate="Basic"), "answered 401 without the header WWW-Authenticate: Bearer"),
        (refused(WWW_Authenticate=""), "answered 401 without the header WWW-Authenticate: Bearer"),
        (refused(WWW_Authenticate="Bearer"), "answered 401 without the header Retry-After"),
    ],
)
def test_what_is_wrong_with_a_refusal_is_named(response: Response, problem: str) -> None:
    assert judge_refusal(response, 401, "Invalid JWT token", bearer=True, retry_after=True) == problem


def test_a_refusal_with_blanks_in_its_body_is_not_the_contracts() -> None:
    response = Response(401, (), b'{"message": "Invalid JWT token"}')
    assert judge_refusal(response, 401, "Invalid JWT token") is not None
    assert judge_refusal(response, 401) is not None


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"error":"x"}', b'{"message":1}', b'{"message":"x","a":1}', b"\xff"]
)
def test_an_error_body_is_a_message_and_nothing_else(body: bytes) -> None:
    assert judge_error_body(Response(404, (), body)) is not None


def test_a_426_need_not_say_what_to_upgrade_to() -> None:
    assert judge_plain_get(refused(426, "Upgrade Required", Upgrade="websocket")) is None
    assert judge_plain_get(refused(426, "Upgrade Required")) is None
    assert judge_plain_get(refused(400, "Upgrade Required")) is not None


@pytest.mark.parametrize("challenge", ["Bearer", "bearer", 'Basic realm="a", Bearer realm="b"'])
def test_a_challenge_may_stand_among_others(challenge: str) -> None:
    response = refused(WWW_Authenticate=challenge)
    assert judge_refusal(response, 401, bearer=True) is None
    negotiated = Response(401, (("WWW-Authenticate", "Negotiate"), *response.headers), response.body)
    assert judge_refusal(negotiated, 401, bearer=True) is None


def test_a_page_is_said_to_be_a_proxys_and_a_redirect_where_it_leads() -> None:
    page = Response(413, (("Server", "nginx"),), b"<html><title>413</title></html>")
    assert described(page) == "413 with an HTML page, a proxy's (nginx)"
    assert described(Response(301, (("location", "https://a/ws?token=secret"),))) == "301 to https://a/ws"


# --- The handshake -------------------------------------------------------------------------------------------------

UPGRADE = Upgrade(key="dGhlIHNhbXBsZSBub25jZQ==")  # the example of RFC 6455, section 1.3
GOOD = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="}


def switched(**changes: str | None) -> Response:
    headers = GOOD | {name.replace("_", "-"): value for name, value in changes.items()}
    return Response(101, tuple((name, value) for name, value in headers.items() if value is not None))


def test_the_example_of_rfc_6455_is_a_good_handshake() -> None:
    assert judge_handshake(switched(), UPGRADE) is None


def test_header_names_and_tokens_have_no_case() -> None:
    response = Response(101, tuple((name.lower(), value) for name, value in GOOD.items()))
    assert judge_handshake(response, UPGRADE) is None
    assert judge_handshake(switched(Upgrade="WebSocket", Connection="keep-alive, upgrade"), UPGRADE) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": None},
        {"Connection": "close"},
        {"Sec_WebSocket_Accept": None},
        {"Sec_WebSocket_Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOO="},
        {"Sec_WebSocket_Extensions": "permessage-deflate"},
        {"Sec_WebSocket_Protocol": "mqtt"},
    ],
)
def test_every_flaw_of_a_handshake_is_found(changes: dict[str, str | None]) -> None:
    assert judge_handshake(switched(**changes), UPGRADE) is not None


def test_a_subprotocol_that_must_be_selected_is_missed() -> None:
    assert judge_handshake(switched(Sec_WebSocket_Protocol="bearer"), UPGRADE, "bearer") is None
    assert judge_handshake(switched(), UPGRADE, "bearer") == "selected the subprotocol none, expected bearer"


# --- Plain HTTP ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [b"2026-01-02T03:04:05Z", b"2026-01-02T03:04:05.123+00:00"])
def test_a_healthy_answer_passes(moment: bytes) -> None:
    assert judge_health(Response(200, (), HEALTH.replace(b"2026-01-02T03:04:05Z", moment))) is None


@pytest.mark.parametrize(
    "body",
    [
        HEALTH.replace(b"Z", b""),
        HEALTH.replace(b"Z", b"+01:00"),
        HEALTH.replace(b"2026", b"26"),
        HEALTH.replace(b"audio", b"video"),
        HEALTH.replace(b",", b", "),
        HEALTH.replace(b"healthy", b"fine"),
        b"OK",
    ],
)
def test_any_other_health_is_objected_to(body: bytes) -> None:
    assert judge_health(Response(200, (), body)) is not None


def test_the_parts_of_readiness_may_stand_in_a_nested_object() -> None:
    parts = dict.fromkeys(("broker", "mailbox", "presence", "speech"), "ready")
    assert judge_ready(Response(200, (), compact_json(parts).encode())) is None
    assert judge_ready(Response(200, (), compact_json({"parts": parts}).encode())) is None
    assert judge_ready(Response(200, (), b'{"broker":"ready"}')) is not None
    assert judge_ready(Response(503, (), compact_json(parts).encode())) is not None
    assert judge_ready(Response(200, (), b"ready")) is not None


def test_a_transcript_passes_and_what_is_wrong_with_one_is_named() -> None:
    answer = {"success": True, "message": "Audio processed successfully", "session_id": "0" * 32, "text": "hello"}
    assert judge_audio(Response(200, (), compact_json(answer).encode())) is None
    assert "answered 502" in str(judge_audio(refused(502, "Speech recognition failed")))
    assert "no words" in str(judge_audio(Response(200, (), compact_json(answer | {"text": " "}).encode())))
    for change in ({"session_id": "1"}, {"text": None}, {"success": False}):
        assert judge_audio(Response(200, (), compact_json(answer | change).encode())) is not None
    assert judge_audio(Response(200, (), json.dumps(answer).encode())) is not None


# --- Messages ------------------------------------------------------------------------------------------------------


def test_a_message_is_the_record_with_type_first_and_replaced() -> None:
    assert expected_message(RECORD) == MESSAGE
    assert judge_message(MESSAGE, RECORD) is None


def test_a_cursor_may_be_the_last_field() -> None:
    assert judge_message(MESSAGE[:-1] + ',"cursor":"AAE="}', RECORD) is None
    assert judge_message(MESSAGE[:-1] + ',"cursor":""}', RECORD) is not None
    assert judge_message(MESSAGE[:-1] + ',"cursor":"a","b":1}', RECORD) is not None


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (MESSAGE.encode(), "binary"),
        ("hello", "is not a JSON object"),
        (MESSAGE.replace(",", ", "), "has blanks"),
        (MESSAGE.replace("\u00e9", "\\u00e9"), "escapes what JSON lets stand"),
        ('{"session_id":"s1","type":"transcription"}', "does not have type as its first field"),
        (MESSAGE.replace("99", "98"), "is not what the contract makes of the record"),
    ],
)
def test_what_is_wrong_with_a_message_is_named(message: str | bytes, problem: str) -> None:
    assert problem in str(judge_message(message, RECORD))


def of(*sessions: str) -> list[str | bytes]:
    return [compact_json({"session_id": session}) for session in sessions]


def test_mail_of_a_life_of_its_own_does_not_matter() -> None:
    assert judge_received([*of("other"), "garbage", b"\xff", *of("a", "b")], ["a", "b"], ["c"], in_order=True) is None


@pytest.mark.parametrize(
    ("sessions", "problem"),
    [
        ("ac", "got 1 message meant for another device"),
        ("a", "did not get 1 of 2 messages"),
        ("abb", "got 3 messages for 2 records"),
        ("ba", "got its messages out of order"),
    ],
)
def test_what_is_wrong_with_the_mail_is_named(sessions: str, problem: str) -> None:
    assert judge_received(of(*sessions), ["a", "b"], ["c"], in_order=True) == problem


SENT = [("a", "normal"), ("H", "high"), ("b", "normal"), ("l", "low"), ("I", "high"), ("m", "low"), ("c", "normal")]


@pytest.mark.parametrize(
    "sessions",
    [
        pytest.param("aHblImc", id="each before the next was published"),
        pytest.param("HIablmc", id="high ones overtake all that wait"),
        pytest.param("aHIblmc", id="high ones overtake what still waits"),
        pytest.param("HIabclm", id="low ones are overtaken"),
    ],
)
def test_a_high_message_may_overtake_any_number_of_others(sessions: str) -> None:
    assert judge_priorities([*of("other"), *of(*sessions)], SENT) is None


@pytest.mark.parametrize(
    ("sessions", "problem"),
    [
        ("aHblIm", "did not get 1 of 7 messages"),
        ("aHblImcc", "got 8 messages for 7 records"),
        ("bHalImc", "got its messages of priority normal out of order"),
        ("aIblHmc", "got its messages of priority high out of order"),
        ("aHbmIlc", "got its messages of priority low out of order"),
        ("abHlImc", "got a high message after one of a lower priority that was published later"),
        ("aHblmIc", "got a high message after one of a lower priority that was published later"),
    ],
)
def test_what_is_wrong_with_the_order_of_priorities_is_named(sessions: str, problem: str) -> None:
    assert judge_priorities(of(*sessions), SENT) == problem


@given(st.data())
def test_a_socket_that_takes_messages_at_any_time_is_never_a_violation(data: st.DataObject) -> None:
    """As many records are published as hypothesis likes before the socket takes the next message."""
    waiting: list[tuple[str, str]] = []
    written: list[str] = []
    for record in [*SENT, None]:
        for _ in range(data.draw(st.integers(0, len(waiting))) if record else len(waiting)):
            first = next((found for found in waiting if found[1] == "high"), waiting[0])
            waiting.remove(first)
            written.append(first[0])
        waiting += [record] if record else []
    assert judge_priorities(of(*written), SENT) is None


def test_fields_that_are_not_for_devices_are_named() -> None:
    messages: list[str | bytes] = [
        '{"session_id":"a","priority":"high"}',
        '{"session_id":"b","id":"7","text":"to"}',
        "garbage",
        b"\xff",
    ]
    assert judge_options_removed(messages, ["b"]) is None
    assert "the field priority" in str(judge_options_removed(messages, ["a", "b"]))


@given(st.binary() | st.text())
def test_any_message_has_a_session_or_none(message: str | bytes) -> None:
    assert session_of(message) is None or isinstance(session_of(message), str)


@given(st.binary() | st.text())
def test_what_is_quoted_is_one_printable_line(text: str | bytes) -> None:
    assert quoted(text).isprintable()


def test_closes_are_described() -> None:
    assert described_close(1009, "too big") == "with 1009 too big"
    assert described_close(1000) == "with 1000"
    assert described_close(None) == "without a close frame"
