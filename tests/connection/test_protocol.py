"""Contract sections 3 and 4, and RFC 6455: what one connection decides, without a socket."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import pytest

from cocoa_tornado.connection.limits import DeviceLimits
from cocoa_tornado.connection.making_room import OutboxLimits, Squeezed
from cocoa_tornado.connection.protocol import (
    ANSWERED,
    CLOSED,
    CLOSING,
    DISCARDING,
    LINGER_S,
    LINGERING,
    MAX_DISCARDED_BYTES,
    OPEN,
    DeviceProtocol,
    Ending,
    Phase,
)
from cocoa_tornado.rules.close_codes import GOING_AWAY, NO_PONG, TOKEN_EXPIRED
from cocoa_tornado.rules.frames import Binary, Pong, Text, text_frame
from cocoa_tornado.rules.rate import RateLimit
from cocoa_tornado.rules.terms import Terms
from testing.raw_device import BINARY, CLOSE, PING, PONG, TEXT, frame

from .takers import TAKER, FakeTaker
from .wire import Sent, close_of, sent_frames

LIMITS = DeviceLimits()
TIGHT = DeviceLimits(inbound=RateLimit(per_s=10.0, burst=20), outbox=OutboxLimits(max_messages=3))
UNLIMITED = DeviceLimits(inbound=RateLimit(per_s=0.0, burst=1))
MARK = (0, 0)
INTERIM = Terms("session")


def code(number: int, reason: bytes = b"") -> bytes:
    return struct.pack("!H", number) + reason


class Device:
    """A connection, and the time; what it sends is taken by its socket at once, unless that is blocked."""

    def __init__(self, limits: DeviceLimits = LIMITS) -> None:
        self.now, self.limits = 1000.0, limits
        self.protocol = DeviceProtocol(self.now)
        self.stamps: list[int] = []
        self.taker = FakeTaker()

    def says(self, *frames: bytes) -> list[object]:
        return list(self.protocol.receive(b"".join(frames), self.now, self.limits))

    def is_sent(self) -> list[Sent]:
        """All that goes out now."""
        sent = self.is_handed_over()
        self.taken()
        return sent

    def is_handed_over(self) -> list[Sent]:
        return sent_frames(self.protocol.data_to_send(self.taker))

    def taken(self) -> None:
        self.stamps += self.protocol.sent()[0]
        self.protocol.advance(self.now, self.limits)

    def is_blocked(self, taken: int = 0, committed: int | None = None) -> list[Sent]:
        """The socket has taken this many bytes of a write. Return the frames that remain in it.

        :param committed: None: the socket must be given all of it
        """
        data = self.protocol.data_to_send(self.taker)
        kept, (stamps, _) = self.protocol.blocked(
            len(data), taken, len(data) if committed is None else committed, MARK, self.now
        )
        self.stamps += stamps
        return sent_frames(data[:kept])

    def push(self, text: bytes, stamp: int = 0, terms: Terms | None = None) -> bool:
        return self.protocol.outbox.push(text_frame(text), stamp, self.limits.outbox, terms)

    def squeeze_in(self, text: bytes, terms: Terms | None = None) -> Squeezed:
        return self.protocol.squeeze_in(text_frame(text), 0, terms, self.now, self.limits, may_drop_low=True)

    def end(self, keep_queued: bool = False) -> None:
        self.protocol.end(GOING_AWAY, self.now, self.limits, keep_queued)

    def later(self, seconds: float) -> None:
        """Time passes, and the timer fires if it is due."""
        self.now += seconds
        if self.protocol.deadline is not None and self.now >= self.protocol.deadline:
            self.protocol.on_deadline()

    def may_be_late(self, *, has_unread: bool = False, is_acknowledged: bool = True) -> bool:
        """Its pong is overdue."""
        return self.protocol.pong_may_be_late(has_unread=has_unread, is_acknowledged=is_acknowledged, now=self.now)

    @property
    def phase(self) -> Phase:
        return self.protocol.phase

    def is_in(self, phase: Phase) -> bool:
        return self.protocol.phase is phase

    @property
    def ending(self) -> Ending:
        assert self.protocol.closing is not None
        return self.protocol.closing.ending


def ended(device: Device) -> tuple[str, str, tuple[int, int]]:
    """How it has ended, with how many messages and interims were dropped."""
    outcome, code, dropped = device.ending
    interims = sum(terms is not None and bool(terms.interim_of) for _, _, terms in dropped)
    return outcome, code, (len(dropped) - interims, interims)


# -- what the device says


def test_messages_are_heard_in_order_and_pings_are_answered() -> None:
    device = Device()
    assert device.says(frame(TEXT, b"one"), frame(PING, b"payload"), frame(BINARY, b"two")) == [
        Text("one"),
        Binary(b"two"),
    ]
    assert device.is_sent() == [(PONG, b"payload")]
    assert not device.protocol.has_to_send


def test_of_several_pings_the_last_is_answered() -> None:
    device = Device()
    device.says(*(frame(PING, bytes([number])) for number in range(5)))
    assert device.is_sent() == [(PONG, b"\4")]


def test_the_largest_message_passes_also_in_fragments() -> None:
    device, size = Device(), LIMITS.max_message_bytes
    assert device.says(frame(BINARY, bytes(size))) == [Binary(bytes(size))]
    fragments = [frame(BINARY if not at else 0, bytes(size // 8), fin=at == 7) for at in range(8)]
    assert device.says(*fragments) == [Binary(bytes(size))]


INVALID = {
    "unmasked": (frame(TEXT, b"x", masked=False), 1002, "frame is not masked"),
    "reserved bit": (frame(TEXT, b"x", rsv=4), 1002, "reserved bits are set"),
    "reserved opcode": (frame(0x3, b"x"), 1002, "reserved opcode"),
    "fragmented control frame": (frame(PING, b"x", fin=False), 1002, "control frame is fragmented or too long"),
    "long control frame": (frame(PING, b"x" * 126), 1002, "control frame is fragmented or too long"),
    "continuation of nothing": (frame(0x0, b"x"), 1002, "continuation of no message"),
    "message in a message": (
        frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"),
        1002,
        "new message inside a fragmented one",
    ),
    "close of one byte": (frame(CLOSE, b"x"), 1002, "close code is not valid"),
    "close code out of range": (frame(CLOSE, code(1005)), 1002, "close code is not valid"),
    "text that is not UTF-8": (frame(TEXT, b"\xff"), 1007, "text is not UTF-8"),
    "reason that is not UTF-8": (frame(CLOSE, code(1000, b"\xff")), 1007, "close reason is not UTF-8"),
    "too big": (frame(BINARY, bytes(512 * 1024 + 1))[:14], 1009, "message over 524288 bytes"),
    "far too big": (frame(BINARY, bytes(5_000_000))[:14], 1009, "message over 524288 bytes"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_frame_ends_the_connection_with_its_code_and_text(name: str) -> None:
    data, number, text = INVALID[name]
    device = Device()
    device.push(b"queued")
    assert device.says(frame(TEXT, b"before"), data, frame(TEXT, b"after")) == [Text("before")]
    assert (device.phase, ended(device)) == (DISCARDING, ("protocol_error", str(number), (1, 0)))
    (close,) = device.is_sent()
    assert close_of(close) == (number, text)
    assert device.is_in(LINGERING)


# -- how much it may say


FLOODS = {
    "text": frame(TEXT, b"x") * 50,
    "pings": frame(PING) * 50,
    "pongs": frame(PONG) * 50,
    "empty fragments": frame(TEXT, b"x", fin=False) + frame(0x0, fin=False) * 50,
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_device_that_sends_too_much_is_closed_with_1008(name: str) -> None:
    device = Device(TIGHT)
    events = device.says(FLOODS[name])
    assert events in ([Text("x")] * 20, [Pong(b"")] * 20, [])
    assert (device.phase, device.ending[:2]) == (DISCARDING, ("rate_limited", "1008"))
    assert close_of(device.is_sent()[-1]) == (1008, "too many messages")


def test_a_message_in_fragments_of_a_usual_size_counts_once() -> None:
    device = Device(TIGHT)
    for _ in range(20):
        fragments = [frame(TEXT if not at else 0x0, b"y" * 200, fin=at == 9) for at in range(10)]
        assert device.says(*fragments) == [Text("y" * 2000)]
    device.says(frame(TEXT, b"one more"))
    assert device.is_in(DISCARDING)


def test_the_rate_is_made_good_by_time() -> None:
    device = Device(TIGHT)
    for _ in range(200):
        device.now += 0.1
        assert device.says(frame(TEXT, b"x")) == [Text("x")]


def test_the_answers_to_pings_of_ours_count_for_nothing() -> None:
    device = Device(TIGHT)
    for _ in range(100):
        device.protocol.ping(device.now)
        assert device.is_sent() == [(PING, b"")]
        assert device.says(frame(PONG)) == [Pong(b"")]
    assert device.says(frame(TEXT, b"x") * 20) == [Text("x")] * 20


def test_no_rate_is_no_limit() -> None:
    assert len(Device(UNLIMITED).says(frame(TEXT, b"x") * 5000)) == 5000


def test_what_was_said_while_the_gateway_did_not_read_is_not_taken_for_a_flood() -> None:
    device = Device(TIGHT)
    device.says(frame(TEXT, b"x") * 20)
    device.protocol.pause(device.now)
    device.now += 10.0
    device.protocol.resume(device.now, TIGHT)
    # Ten seconds' worth; and no more than the burst on top of what is left of that.
    assert len(device.says(frame(TEXT, b"x") * 80)) == 80
    device.now += 10.0
    assert len(device.says(frame(TEXT, b"x") * 30)) == 20
    assert device.is_in(DISCARDING)


# -- what is sent


def test_control_frames_go_first_then_messages_in_order_then_the_close_frame_then_nothing() -> None:
    device = Device()
    device.push(b"one", 1)
    device.push(b"two", 2)
    device.protocol.ping(device.now)
    device.says(frame(PING, b"?"))
    device.end(keep_queued=True)
    sent = device.is_handed_over()
    assert sent[:4] == [(PING, b""), (PONG, b"?"), (TEXT, b"one"), (TEXT, b"two")]
    assert close_of(sent[4]) == (1001, "server going away")
    assert device.stamps == []
    device.taken()
    assert device.stamps == [1, 2]
    device.protocol.ping(device.now)
    device.says(frame(PING, b"?"))
    assert (device.protocol.has_to_send, device.is_sent()) == (False, [])


def test_an_end_drops_what_is_queued_unless_it_is_to_be_kept() -> None:
    device = Device()
    device.push(b"one")
    device.push(b"interim", terms=INTERIM)
    device.end()
    assert ended(device) == ("drain", "1001", (1, 1))
    assert [opcode for opcode, _ in device.is_sent()] == [CLOSE]


def test_only_the_first_end_counts() -> None:
    device = Device()
    device.end()
    device.protocol.end(NO_PONG, device.now, LIMITS)
    assert close_of(device.is_sent()[0])[0] == 1001
    device.protocol.end(TOKEN_EXPIRED, device.now, LIMITS)
    assert device.is_sent() == []
    assert device.ending[:2] == ("drain", "1001")


def test_a_message_that_finds_no_room_closes_with_1013_and_an_interim_one_does_not() -> None:
    device = Device(TIGHT)
    for number in range(3):
        assert device.push(b"%d" % number)
    assert device.squeeze_in(b"interim", INTERIM)[:3] == (False, 1, 0)
    assert device.is_in(OPEN)
    assert device.squeeze_in(b"final")[:3] == (False, 0, 0)
    assert ended(device) == ("slow_consumer", "1013", (3, 0))
    assert close_of(device.is_sent()[0]) == (1013, "slow consumer")


def test_interim_messages_make_room() -> None:
    device = Device(TIGHT)
    device.push(b"interim", terms=INTERIM)
    device.push(b"one")
    device.push(b"two")
    assert device.squeeze_in(b"three")[:3] == (True, 1, 0)
    assert device.is_sent() == [(TEXT, b"one"), (TEXT, b"two"), (TEXT, b"three")]


# -- a socket that takes its time


def test_what_the_socket_has_not_taken_still_counts_as_waiting() -> None:
    device = Device(TIGHT)
    for number in range(3):
        assert device.push(b"%d" % number)
    device.is_blocked()
    assert not device.push(b"more")
    device.taken()
    assert device.push(b"more")


def test_a_socket_that_takes_no_byte_for_the_write_wait_is_stuck() -> None:
    device = Device()
    assert not device.protocol.is_stuck(device.now + 100.0, LIMITS)
    device.push(b"x")
    device.is_blocked()
    device.later(9.9)
    assert not device.protocol.is_stuck(device.now, LIMITS)
    device.later(0.1)
    assert device.protocol.is_stuck(device.now, LIMITS)
    device.protocol.lose("write_timeout")
    assert (device.phase, device.ending[:2]) == (CLOSED, ("write_timeout", "lost"))


def test_a_socket_that_takes_a_little_again_and_again_is_not() -> None:
    device = Device()
    device.push(b"x")
    device.is_blocked()
    for taken in range(1, 20):
        device.later(9.0)
        assert device.protocol.progressed((taken, 0), device.now)
        assert not device.protocol.progressed((taken, 0), device.now)
        assert not device.protocol.is_stuck(device.now, LIMITS)
        assert device.protocol.heartbeat.heard_at == device.now


def test_a_socket_that_is_busy_with_nothing_makes_no_progress() -> None:
    assert not Device().protocol.progressed((1, 1), 1000.0)


def test_the_close_frame_waits_for_a_write_that_is_under_way() -> None:
    device = Device()
    device.push(b"x")
    device.is_blocked()
    device.end()
    device.says(frame(CLOSE, code(1000)))
    assert device.is_in(ANSWERED)
    device.taken()
    assert device.is_in(ANSWERED)
    assert close_of(device.is_sent()[0])[0] == 1001
    assert device.is_in(CLOSED)


def test_the_socket_stays_open_until_it_has_taken_our_close_frame() -> None:
    device = Device()
    device.end()
    device.is_blocked()
    device.says(frame(CLOSE, code(1000)))
    assert device.is_in(ANSWERED)
    device.taken()
    assert device.is_in(CLOSED)


def test_what_the_socket_has_not_begun_to_take_is_overtaken_by_control_frames_and_high_messages() -> None:
    device = Device()
    for number in range(5):
        device.push(b"%d" % number, number + 1)
    assert device.is_blocked(taken=4, committed=4) == [(TEXT, b"0"), (TEXT, b"1")]
    assert device.stamps == [1]
    device.push(b"high", 9, Terms(priority="high"))
    device.protocol.ping(device.now)
    device.says(frame(PING, b"?"))
    device.taken()
    assert device.stamps == [1, 2]
    others = [(TEXT, b"%d" % number) for number in range(2, 5)]
    assert device.is_sent() == [(PING, b""), (PONG, b"?"), (TEXT, b"high"), *others]
    assert device.stamps == [1, 2, 9, 3, 4, 5]


def test_what_the_socket_has_taken_is_counted_behind_the_control_frames() -> None:
    device = Device()
    for number in range(3):
        device.push(b"x" * 100, number)
    device.protocol.ping(device.now)
    assert device.is_blocked(taken=103, committed=103) == [(PING, b""), (TEXT, b"x" * 100)]
    assert device.stamps == []
    device.taken()
    assert device.stamps == [0]
    device.says(frame(PING, b"?"))
    assert len(device.is_blocked(taken=3 + 102, committed=3 + 102)) == 2
    assert device.stamps == [0, 1]


def test_a_frame_that_is_made_when_it_is_taken_is_counted_behind_the_control_frames_too() -> None:
    """Its size is unknown before."""
    device = Device()
    device.taker = FakeTaker(make=lambda payload, lane, number: text_frame(payload))
    for number in range(3):
        device.protocol.outbox.push(b"x" * 100, number, LIMITS.outbox, Terms(number=number + 1))
    device.protocol.ping(device.now)
    assert device.is_blocked(taken=105, committed=105) == [(PING, b""), (TEXT, b"x" * 100), (TEXT, b"x" * 100)]
    assert device.stamps == [0]
    device.taken()
    assert device.is_sent() == [(TEXT, b"x" * 100)]
    assert device.stamps == [0, 1, 2]


def test_an_end_drops_what_the_socket_has_not_begun_to_take() -> None:
    device = Device()
    for number in range(5):
        device.push(b"%d" % number)
    device.is_blocked(taken=1, committed=1)
    device.end()
    assert ended(device) == ("drain", "1001", (4, 0))
    device.taken()
    assert [opcode for opcode, _ in device.is_sent()] == [CLOSE]


def test_a_close_frame_behind_messages_that_are_kept_goes_after_the_last_of_them_however_long_that_takes() -> None:
    device = Device(DeviceLimits(outbox=OutboxLimits(max_bytes=10_000_000)))
    large = bytes(70_000)
    for _ in range(5):
        device.push(large)
    device.end(keep_queued=True)
    assert device.is_blocked(taken=1, committed=1) == [(TEXT, large)]
    device.taken()
    assert device.protocol.has_to_send
    assert device.is_sent() == [(TEXT, large)] * 2
    assert device.is_blocked(taken=0, committed=0) == []
    device.taken()
    assert device.is_in(CLOSING)
    size = 2 * len(text_frame(large))
    assert [opcode for opcode, _ in device.is_blocked(taken=1, committed=size)] == [TEXT, TEXT]
    device.taken()
    assert [opcode for opcode, _ in device.is_blocked(taken=1)] == [CLOSE]
    assert not device.protocol.has_to_send
    device.taken()
    assert device.is_sent() == []


def test_control_frames_stay_in_the_write_though_the_socket_has_not_begun_to_take_them() -> None:
    device = Device()
    device.push(b"x")
    device.protocol.ping(device.now)
    assert device.is_blocked(taken=0, committed=0) == [(PING, b"")]
    device.taken()
    assert device.is_sent() == [(TEXT, b"x")]


def test_a_socket_that_has_room_for_nothing_is_stuck_though_nothing_is_in_the_write() -> None:
    device = Device()
    device.push(b"x")
    assert device.is_blocked(taken=0, committed=0) == []
    device.later(10.0)
    assert device.protocol.is_stuck(device.now, LIMITS)
    assert device.protocol.progressed((1, 0), device.now)
    assert not device.protocol.is_stuck(device.now, LIMITS)


def test_a_low_message_that_finds_no_room_closes_nothing() -> None:
    device = Device(TIGHT)
    for number in range(3):
        device.push(b"%d" % number)
    assert device.squeeze_in(b"low", Terms(priority="low"))[:3] == (False, 0, 1)
    assert device.is_in(OPEN)


# -- pings, and pongs that may be late because of this side


def test_a_pong_tells_the_round_trip_from_queuing_its_ping() -> None:
    device = Device()
    assert device.protocol.heartbeat.round_trip_s is None
    device.protocol.ping(device.now)
    device.now += 0.25
    device.is_sent()
    device.now += 0.5
    device.says(frame(PONG))
    assert device.protocol.heartbeat.round_trip_s == 0.75
    device.now += 5.0
    device.says(frame(PONG, b"unasked"))
    assert device.protocol.heartbeat.round_trip_s == 0.75
    assert device.protocol.heartbeat.heard_at == device.now


def test_a_device_that_could_answer_has_no_more_time() -> None:
    device = Device()
    device.protocol.ping(device.now)
    device.is_sent()
    assert not device.may_be_late()


def test_the_time_for_a_pong_begins_when_the_ping_has_left() -> None:
    device = Device()
    device.push(b"large")
    device.is_blocked()
    device.protocol.ping(device.now)
    assert device.may_be_late()  # it waits for the socket
    device.taken()
    device.is_blocked()
    assert device.may_be_late()  # it is in a write that the socket has not taken
    device.taken()
    assert device.may_be_late()  # it has left since this was last asked
    assert not device.may_be_late()  # and now it is too late


def test_a_ping_that_waited_behind_a_write_is_late_though_the_socket_then_takes_it_at_once() -> None:
    device = Device()
    device.push(b"large")
    device.is_blocked()
    device.protocol.ping(device.now)
    device.taken()
    assert device.is_sent() == [(PING, b"")]
    assert device.may_be_late()
    assert not device.may_be_late()


def test_a_challenge_during_the_write_of_a_ping_hides_no_delay() -> None:
    device = Device()
    device.protocol.ping(device.now)
    assert device.is_blocked() == [(PING, b"")]
    device.protocol.challenge(device.now)
    device.taken()
    assert device.is_sent() == [(PING, b"")]
    assert device.may_be_late()


def test_a_device_that_is_not_read_from_has_more_time_and_once_more_when_it_is() -> None:
    device = Device()
    device.protocol.ping(device.now)
    device.is_sent()
    device.protocol.pause(device.now)
    for _ in range(3):
        assert device.may_be_late()
        assert device.is_sent() == [(PING, b"")]
    device.protocol.resume(device.now, LIMITS)
    assert device.may_be_late()
    assert not device.may_be_late()


@pytest.mark.parametrize("has_unread", [True, False])
def test_a_device_that_vanishes_while_it_is_not_read_from_does_not_acknowledge_the_next_ping(has_unread: bool) -> None:
    """Earlier data that is still in the socket does not prove that the client is alive."""
    device = Device()
    device.protocol.ping(device.now)
    device.is_sent()
    device.protocol.pause(device.now)
    assert device.may_be_late(has_unread=has_unread, is_acknowledged=True)
    assert device.is_sent() == [(PING, b"")]
    assert not device.may_be_late(has_unread=has_unread, is_acknowledged=False)
    assert not device.protocol.has_to_send


def test_a_ping_that_waits_behind_a_write_need_not_be_acknowledged_while_the_device_is_not_read_from() -> None:
    device = Device()
    device.protocol.pause(device.now)
    device.push(b"large")
    device.is_blocked()
    device.protocol.ping(device.now)
    assert device.may_be_late(is_acknowledged=False)
    device.taken()
    device.is_sent()
    assert device.may_be_late(is_acknowledged=False)  # it has left since this was last asked
    assert not device.may_be_late(is_acknowledged=False)


def test_what_lies_unread_in_the_socket_of_a_device_that_is_read_from_may_be_its_pong() -> None:
    device = Device()
    device.protocol.ping(device.now)
    device.is_sent()
    assert device.may_be_late(has_unread=True, is_acknowledged=False)
    assert not device.may_be_late(is_acknowledged=False)
    assert not device.protocol.has_to_send


@pytest.mark.parametrize("what", ["pong", "ping"])
def test_a_delay_counts_no_longer_after_a_pong_nor_for_the_next_ping(what: str) -> None:
    device = Device()
    device.protocol.pause(device.now)
    device.protocol.resume(device.now, LIMITS)
    if what == "pong":
        device.says(frame(PONG))
    else:
        device.protocol.ping(device.now)
        device.is_sent()
    assert not device.may_be_late()


def test_a_challenge_beside_a_ping_of_the_keepalive_keeps_its_delay() -> None:
    device = Device()
    device.protocol.ping(device.now)
    device.is_blocked()
    device.taken()
    device.protocol.challenge(device.now)
    device.is_sent()
    assert device.may_be_late()


def test_a_pong_answers_a_challenge_once() -> None:
    device = Device()
    device.protocol.challenge(device.now)
    assert device.is_sent() == [(PING, b"")]
    assert device.says(frame(PONG)) == [Pong(b"")]
    assert device.protocol.heartbeat.answer_challenge()
    assert not device.protocol.heartbeat.answer_challenge()


def test_nobody_is_pinged_once_the_end_has_begun() -> None:
    device = Device()
    device.end()
    device.protocol.ping(device.now)
    device.protocol.challenge(device.now)
    assert [opcode for opcode, _ in device.is_sent()] == [CLOSE]


# -- a device whose words wait for room


def test_what_a_client_that_has_gone_has_said_is_read_to_its_end() -> None:
    device = Device(TIGHT)
    assert device.protocol.may_pause
    device.protocol.pause(device.now)
    device.protocol.peer_has_gone(device.now, TIGHT)
    assert not device.protocol.may_pause
    device.protocol.resume(device.now, TIGHT)
    assert not device.protocol.may_pause
    assert device.says(frame(TEXT, b"last words")) == [Text("last words")]


def test_one_that_goes_while_it_is_not_read_from_has_its_time_made_good() -> None:
    device = Device(TIGHT)
    device.says(frame(TEXT, b"x") * 20)
    device.protocol.pause(device.now)
    device.now += 10.0
    device.protocol.peer_has_gone(device.now, TIGHT)
    assert device.may_be_late()
    assert len(device.says(frame(TEXT, b"x") * 100)) == 100


def test_so_it_is_with_one_whose_connection_has_ended() -> None:
    device = Device()
    device.end()
    assert not device.protocol.may_pause


def test_a_pause_that_comes_too_late_changes_nothing() -> None:
    """The shell decides to pause in one loop turn and does so in the next; in between the client may go."""
    device = Device()
    device.protocol.peer_has_gone(device.now, LIMITS)
    device.protocol.pause(device.now)
    assert not device.protocol.may_pause
    assert not device.may_be_late()
    ended = Device()
    ended.end()
    ended.protocol.pause(ended.now)
    assert not ended.may_be_late()


def test_while_it_is_not_read_from_its_kernels_acknowledgement_of_the_ping_is_its_sign_of_life() -> None:
    device = Device()
    device.protocol.pause(device.now)
    assert not device.protocol.all_acknowledged()  # nobody has asked
    device.protocol.challenge(device.now)
    assert not device.protocol.all_acknowledged()  # the ping was not among it
    device.is_blocked()
    assert not device.protocol.all_acknowledged()
    device.taken()
    assert device.protocol.all_acknowledged()
    assert not device.protocol.all_acknowledged()


def test_while_it_is_read_from_only_its_pong_is() -> None:
    device = Device()
    device.protocol.challenge(device.now)
    device.is_sent()
    assert not device.protocol.all_acknowledged()


# -- the closing handshake


@pytest.mark.parametrize("number", [1000, 1001, 3000, 4999])
def test_a_close_is_echoed_and_the_server_closes_the_socket_behind_it(number: int) -> None:
    device = Device()
    device.push(b"queued")
    assert device.says(frame(TEXT, b"x"), frame(CLOSE, code(number, b"bye")), frame(TEXT, b"y")) == [Text("x")]
    assert (device.phase, ended(device)) == (ANSWERED, ("closed_by_device", str(number), (1, 0)))
    assert [close_of(sent) for sent in device.is_sent()] == [(number, "")]
    assert device.is_in(CLOSED)


def test_a_close_without_a_code_is_noted_as_1005_and_answered_without_one() -> None:
    device = Device()
    device.says(frame(CLOSE))
    assert device.ending[:2] == ("closed_by_device", "1005")
    assert device.is_sent() == [(CLOSE, b"")]


def test_the_server_closes_the_socket_once_its_own_close_is_answered() -> None:
    device = Device()
    device.end()
    device.is_sent()
    assert device.says(frame(TEXT, b"on its way"), frame(PING)) == []
    assert device.is_in(CLOSING)
    device.says(frame(CLOSE, code(1001)))
    assert device.is_in(CLOSED)
    assert device.ending[:2] == ("drain", "1001")


def test_close_frames_that_cross_are_no_fault() -> None:
    device = Device()
    device.end()
    device.says(frame(CLOSE, code(1000)))
    assert device.is_in(ANSWERED)
    device.is_sent()
    assert device.is_in(CLOSED)


def test_a_client_that_does_not_answer_our_close_has_the_write_wait() -> None:
    device = Device()
    device.end()
    device.is_sent()
    device.later(9.9)
    assert device.is_in(CLOSING)
    device.later(0.1)
    assert (device.phase, device.protocol.deadline) == (CLOSED, None)


def test_so_has_a_socket_that_does_not_take_our_close_frame() -> None:
    device = Device()
    device.says(frame(CLOSE, code(1000)))
    device.is_blocked()
    device.later(10.0)
    assert device.is_in(CLOSED)


@pytest.mark.parametrize("write_wait_s", [10.0, 0.5])
def test_a_faulty_client_is_given_two_seconds_to_read_our_close_frame_at_most_the_write_wait(
    write_wait_s: float,
) -> None:
    device = Device(DeviceLimits(write_wait_s=write_wait_s))
    device.says(frame(TEXT, rsv=4))
    assert device.is_in(DISCARDING)
    device.later(0.1)
    device.is_sent()
    assert device.is_in(LINGERING)
    assert device.protocol.deadline == device.now + min(LINGER_S, write_wait_s)
    device.says(frame(CLOSE, code(1000)))
    assert device.is_in(LINGERING)
    device.later(LINGER_S)
    assert device.is_in(CLOSED)


@pytest.mark.parametrize("fault", [frame(TEXT, rsv=4), frame(PONG) * 30], ids=["invalid frame", "flood"])
def test_a_fault_while_our_close_is_not_answered_is_heard_out_likewise(fault: bytes) -> None:
    device = Device(TIGHT)
    device.end()
    device.says(fault)
    assert device.is_in(DISCARDING)
    assert close_of(device.is_sent()[0])[0] == 1001
    assert device.is_in(LINGERING)
    again = Device(TIGHT)
    again.end()
    again.is_sent()
    again.says(fault)
    assert again.is_in(LINGERING)


ENDS: dict[str, Callable[[Device], object]] = {
    "ended": lambda device: device.end(),
    "faulty": lambda device: device.says(frame(TEXT, rsv=4)),
    "closed": lambda device: device.says(frame(CLOSE)),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("is_written", [False, True])
def test_a_client_that_goes_on_sending_after_the_end_is_cut_off(end: str, is_written: bool) -> None:
    device, piece = Device(UNLIMITED), frame(BINARY, bytes(100_000))
    ENDS[end](device)
    if is_written:
        device.is_sent()
    for _ in range(MAX_DISCARDED_BYTES // len(piece)):
        device.says(piece)
    if end != "closed" or not is_written:
        assert not device.is_in(CLOSED)
    device.says(piece)
    assert device.is_in(CLOSED)


@pytest.mark.parametrize("phase", ["open", *ENDS])
def test_a_socket_that_fails_ends_the_connection_whatever_its_phase(phase: str) -> None:
    device = Device()
    device.push(b"queued")
    before = None
    if phase != "open":
        ENDS[phase](device)
        before = ended(device)
    device.protocol.lose("lost")
    assert (device.phase, device.protocol.deadline) == (CLOSED, None)
    assert (device.protocol.has_to_send, device.is_sent()) == (False, [])
    assert ended(device) == (before or ("lost", "lost", (1, 0)))
    device.says(frame(TEXT, b"x"))
    device.protocol.lose("again")
    assert (device.phase, ended(device)) == (CLOSED, before or ("lost", "lost", (1, 0)))


# -- bounds


def test_a_message_that_has_not_ended_is_counted_and_nothing_else_is() -> None:
    device = Device()
    assert device.protocol.under_way_bytes == 0
    device.says(frame(TEXT, b"x" * 300, fin=False))
    assert device.protocol.under_way_bytes == 300
    device.says(frame(PING))
    device.says(frame(0x0, b"y" * 100)[:58])
    assert device.protocol.under_way_bytes == 352
    fresh = Device()
    fresh.says(frame(TEXT, b"whole") + frame(TEXT, b"part")[:3])
    assert fresh.protocol.under_way_bytes == 0


def test_small_fragments_leave_nothing_behind() -> None:
    device = Device(UNLIMITED)
    device.says(frame(TEXT, b"x", fin=False))
    tracemalloc.start()
    try:
        device.says(frame(0x0, fin=False) * 2000)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 16_000  # something for each fragment would be five times as much


def test_an_idle_connection_takes_little_memory_also_when_it_has_answered_pings() -> None:
    pong = frame(PONG)

    def idle() -> DeviceProtocol:
        protocol = DeviceProtocol(1000.5)
        for _ in range(3):
            protocol.ping(1001.5)
            protocol.data_to_send(TAKER)
            protocol.sent()
            assert protocol.receive(pong, 1002.5, LIMITS)
        return protocol

    idle()
    tracemalloc.start()
    try:
        kept = [idle() for _ in range(1000)]
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size / len(kept) < 500
