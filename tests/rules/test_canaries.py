"""Canary messages: which are awaited, and the outcome of each."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from cocoa_tornado.connection.making_room import OutboxLimits
from cocoa_tornado.rules.canaries import (
    DEADLINE_S,
    HEADER,
    HEADERS,
    MOST_AWAITED,
    OPTIONS,
    REMEMBERED,
    CanaryState,
    CanaryWatch,
    Delivered,
    Late,
    Leaked,
    canary_ids,
    is_canary,
    record_for,
    texts_in,
)
from cocoa_tornado.rules.frames import close_frame, pong_frame, text_frame
from cocoa_tornado.rules.identity import is_device_id
from cocoa_tornado.rules.records import Record, Rejected, decode

A, B = canary_ids("0123456789abcdef")


def payload_for(device_id: str, session_id: str) -> bytes:
    decoded = decode(session_id.encode(), record_for(device_id, session_id, 0), 1, tuple(HEADERS.items()))
    assert isinstance(decoded, Record), decoded
    return decoded.payload


def watch_of_both() -> CanaryWatch:
    watch = CanaryWatch((A, B))
    watch.sent("1", A, 100.0)
    watch.sent("2", B, 100.0)
    return watch


def test_the_canaries_of_a_server_have_two_reserved_ids() -> None:
    assert A != B
    for device_id in (A, B):
        assert is_canary(device_id)
        assert is_device_id(device_id)
    assert not is_canary("cocoa-canar")


def test_a_canary_message_is_decoded_as_a_transient_record_for_its_canary() -> None:
    value = record_for(A, "s1", 1_700_000_000.9)
    decoded = decode(b"s1", value, 1, ((HEADER, b"1"),))
    assert isinstance(decoded, Record)
    assert (decoded.address, decoded.options, decoded.key_agrees) == (A, OPTIONS, True)
    assert decoded.is_transient
    assert not decoded.is_for_mailbox
    assert json.loads(decoded.payload)["timestamp"] == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        ({"device_id": A}, None, "no_device"),
        ({"device_id": A}, (), "no_device"),
        ({"device_id": A}, (("cocoa.ttl", b"0"),), "no_device"),
        ({"device_id": A, "text": "escaped \\u00e9 \n"}, None, "no_device"),
        ({"to": {"device": A}}, None, "to"),
        ({"to": {"device": A}}, tuple(HEADERS.items()), "to"),
        ({"to": {"devices": ["doll", A]}}, tuple(HEADERS.items()), "to"),
        ({"device_id": "doll"}, (("cocoa.to", json.dumps({"device": A}).encode()), (HEADER, b"1")), "to"),
    ],
)
def test_a_record_for_a_canary_without_the_header_or_with_an_address_is_rejected(
    value: dict[str, object], headers: tuple[tuple[str, bytes], ...] | None, reason: str
) -> None:
    assert decode(None, json.dumps(value).encode(), 1, headers) == Rejected(reason)


def test_the_header_changes_nothing_of_a_record_for_a_device() -> None:
    value = b'{"device_id":"doll","text":"Hello"}'
    assert decode(None, value, 1, ((HEADER, b"1"),)) == decode(None, value, 1)


def test_fields_in_the_value_or_in_headers_do_not_make_a_canary_message_durable() -> None:
    value = json.dumps({"device_id": A, "ttl": 100, "id": "x", "collapse_key": "k", "priority": "high"}).encode()
    decoded = decode(None, value, 1, (("cocoa.collapse_key", b"j"), *HEADERS.items()))
    assert isinstance(decoded, Record)
    assert decoded.options == OPTIONS


def test_a_message_that_reaches_its_canary_is_delivered_once() -> None:
    watch = watch_of_both()
    assert watch.state is CanaryState.WAITING
    assert watch.arrived(A, payload_for(A, "1"), 100.5) == Delivered(0.5)
    assert watch.state is CanaryState.WAITING
    assert watch.arrived(A, payload_for(A, "1"), 100.6) == Late(was_lost=False)
    assert watch.arrived(B, payload_for(B, "2"), 102.0) == Delivered(2.0)
    assert (watch.state, len(watch)) == (CanaryState.READY, 0)


def test_a_message_for_the_other_canary_or_one_of_another_server_or_a_device_leaks() -> None:
    elsewhere, _ = canary_ids("fedcba9876543210")
    for other in (B, elsewhere, "doll"):
        watch = watch_of_both()
        payload = json.dumps({"type": "transcription", "device_id": other, "session_id": "2"}).encode()
        assert watch.arrived(A, payload, 100.5) == Leaked(other)
        assert watch.state is CanaryState.LEAKED
        assert len(watch) == 2, "it may arrive where it belongs still"
    assert not CanaryState.LEAKED.is_ok


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"\xff", b'{"device_id":7}', b'{"type":"reconnect"}', b"null"])
def test_what_names_no_device_leaks(payload: bytes) -> None:
    assert CanaryWatch((A, B)).arrived(A, payload, 1.0) == Leaked("")


@pytest.mark.parametrize("session_id", ["3", 1, None, ["1"]])
def test_a_message_that_was_never_sent_is_no_leak_and_no_delivery(session_id: object) -> None:
    watch = watch_of_both()
    payload = json.dumps({"device_id": A, "session_id": session_id}).encode()
    assert watch.arrived(A, payload, 100.5) == Late(was_lost=False)
    assert (watch.state, len(watch)) == (CanaryState.WAITING, 2)


def test_a_message_is_lost_at_its_deadline_and_the_next_arrival_ends_that_state() -> None:
    watch = watch_of_both()
    watch.arrived(B, payload_for(B, "2"), 101.0)
    assert watch.overdue(100.0 + DEADLINE_S - 0.001) == 0
    assert watch.overdue(100.0 + DEADLINE_S) == 1
    assert (watch.state, watch.state.is_ok) == (CanaryState.LOST, False)
    assert watch.overdue(1e9) == 0
    assert watch.arrived(A, payload_for(A, "1"), 170.0) == Late(was_lost=True)
    assert watch.arrived(A, payload_for(A, "1"), 170.1) == Late(was_lost=False)
    watch.sent("3", A, 171.0)
    watch.arrived(A, payload_for(A, "3"), 171.5)
    assert watch.state is CanaryState.READY


def test_a_lost_message_says_nothing_new_once_a_later_one_has_arrived() -> None:
    watch = watch_of_both()
    watch.arrived(B, payload_for(B, "2"), 101.0)
    watch.sent("3", A, 150.0)
    watch.arrived(A, payload_for(A, "3"), 150.5)
    assert watch.overdue(100.0 + DEADLINE_S) == 1
    assert watch.state is CanaryState.READY


def test_the_state_is_that_of_the_message_that_was_sent_last() -> None:
    watch = watch_of_both()
    watch.arrived(A, payload_for(A, "1"), 101.0)
    watch.arrived(B, payload_for(B, "2"), 101.0)
    watch.sent("4", A, 170.0)
    watch.sent("5", A, 171.0)
    assert watch.failed("5") == 1
    watch.arrived(A, payload_for(A, "4"), 172.0)
    assert watch.state is CanaryState.LOST


def test_no_more_messages_are_sent_to_a_canary_than_its_outbox_takes() -> None:
    watch = CanaryWatch((A, B))
    for number in range(MOST_AWAITED):
        assert watch.may_send(A)
        watch.sent(str(number), A, 1.0)
    assert (watch.may_send(A), watch.may_send(B)) == (False, True)
    watch.arrived(A, payload_for(A, "0"), 1.5)
    assert watch.may_send(A)
    assert OutboxLimits().max_messages > 3 * MOST_AWAITED, "with those that are lost while presence is frozen"


def test_a_message_that_cannot_be_published_is_lost_once() -> None:
    watch = watch_of_both()
    assert (watch.failed("1"), watch.failed("1"), watch.failed("unknown")) == (1, 0, 0)
    assert watch.state is CanaryState.LOST


def test_the_messages_of_a_canary_that_is_not_connected_are_neither_lost_nor_delivered() -> None:
    watch = watch_of_both()
    watch.abandon(A)
    assert watch.overdue(1e9) == 1
    assert watch.arrived(A, payload_for(A, "1"), 1e9) == Late(was_lost=False)


def test_of_the_lost_messages_the_latest_are_recognized_when_they_arrive() -> None:
    watch = CanaryWatch((A, B))
    names = [str(number) for number in range(REMEMBERED + 1)]
    for name in names:
        watch.sent(name, A, 0.0)
    assert watch.overdue(DEADLINE_S) == len(names)
    late = [watch.arrived(A, payload_for(A, name), 100.0) for name in names]
    assert late == [Late(was_lost=False), *[Late(was_lost=True)] * REMEMBERED]


def test_after_a_refusal_nothing_is_awaited() -> None:
    watch = watch_of_both()
    watch.refuse()
    assert (watch.overdue(1e9), watch.state) == (0, CanaryState.REFUSED)


def test_texts_are_read_out_of_frames_of_every_length() -> None:
    texts = [b"", b"a" * 125, b"b" * 126, b"c" * 65_535, b"d" * 65_536]
    frames = b"".join([pong_frame(b"x"), *map(text_frame, texts), close_frame(1001)])
    assert list(texts_in(frames)) == texts


@given(st.lists(st.binary(max_size=300)), st.integers(1, 400))
def test_frames_that_are_cut_short_are_an_error(texts: list[bytes], cut: int) -> None:
    whole = b"".join(map(text_frame, texts))
    try:
        found = list(texts_in(whole[:-cut]))
    except ValueError:
        return
    assert found == texts[: len(found)]


class WatchMachine(RuleBasedStateMachine):
    """Each message that is sent has one end: delivered, lost or abandoned. A wrong arrival ends none."""

    messages = Bundle("messages")

    def __init__(self) -> None:
        super().__init__()
        self.watch = CanaryWatch((A, B))
        self.now = 0.0
        self.awaited: dict[str, tuple[str, float]] = {}
        self.last: dict[str, tuple[int, bool]] = {}
        self.lost: set[str] = set()
        self.leaks = self.number = 0

    @rule(target=messages, device_id=st.sampled_from((A, B)))
    def send(self, device_id: str) -> tuple[str, str]:
        self.number += 1
        name = str(self.number)
        self.watch.sent(name, device_id, self.now)
        self.awaited[name] = device_id, self.now
        return name, device_id

    @rule(message=messages)
    def arrive(self, message: tuple[str, str]) -> None:
        name, device_id = message
        arrival = self.watch.arrived(device_id, payload_for(device_id, name), self.now)
        awaited = self.awaited.pop(name, None)
        assert arrival == (Late(name in self.lost) if awaited is None else Delivered(self.now - awaited[1]))
        self.lost.discard(name)
        if awaited is not None:
            self.note(message, True)

    def note(self, message: tuple[str, str], has_arrived: bool) -> None:
        name, device_id = message
        self.last[device_id] = max(self.last.get(device_id, (0, True)), (int(name), has_arrived))

    @rule(message=messages)
    def leak(self, message: tuple[str, str]) -> None:
        name, device_id = message
        reached = B if device_id == A else A
        assert self.watch.arrived(reached, payload_for(device_id, name), self.now) == Leaked(device_id)
        self.leaks += 1

    @rule(message=messages)
    def fail(self, message: tuple[str, str]) -> None:
        name, _ = message
        is_awaited = self.awaited.pop(name, None) is not None
        assert self.watch.failed(name) == is_awaited
        if is_awaited:
            self.note(message, False)
            self.lost.add(name)

    @rule(seconds=st.floats(0, 2 * DEADLINE_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        overdue = {name: of for name, (of, sent_at) in self.awaited.items() if sent_at + DEADLINE_S <= self.now}
        assert self.watch.overdue(self.now) == len(overdue)
        for name, device_id in overdue.items():
            del self.awaited[name]
            self.note((name, device_id), False)
            self.lost.add(name)

    @rule(device_id=st.sampled_from((A, B)))
    def disconnect(self, device_id: str) -> None:
        self.watch.abandon(device_id)
        self.awaited = {name: each for name, each in self.awaited.items() if each[0] != device_id}

    @invariant()
    def the_state_is_that_of_the_last_messages(self) -> None:
        assert len(self.watch) == len(self.awaited)
        if self.leaks:
            expected = CanaryState.LEAKED
        elif not all(has_arrived for _, has_arrived in self.last.values()):
            expected = CanaryState.LOST
        else:
            expected = CanaryState.READY if len(self.last) == 2 else CanaryState.WAITING
        assert self.watch.state is expected


TestWatchMachine = WatchMachine.TestCase
