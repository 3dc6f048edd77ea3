"""Invariants of every connection, for any sequence of actions of the client, its socket, the gateway and the clock."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cocoa_tornado.connection.heartbeat import SENT
from cocoa_tornado.connection.limits import DeviceLimits
from cocoa_tornado.connection.making_room import OutboxLimits
from cocoa_tornado.connection.protocol import CLOSED, LINGERING, OPEN, PAUSED, TO_END, DeviceProtocol
from cocoa_tornado.rules.close_codes import GOING_AWAY, NO_PONG
from cocoa_tornado.rules.frames import text_frame
from cocoa_tornado.rules.rate import RateLimit
from cocoa_tornado.rules.terms import Terms
from testing.raw_device import BINARY, CLOSE, PING, PONG, TEXT, frame

from ..profiles import examples
from .takers import TAKER
from .wire import complete_frames, sent_frames

LIMITS = DeviceLimits(
    max_message_bytes=200,
    outbox=OutboxLimits(max_messages=4, max_bytes=60),
    inbound=RateLimit(per_s=2, burst=10),
)
CONTROL = {PING, PONG}
FRAMES = st.sampled_from(
    [
        frame(TEXT, b"hello"),
        frame(TEXT, b"he", fin=False),
        frame(0, b"llo"),
        frame(BINARY, bytes(150)),
        frame(BINARY, bytes(150), fin=False),
        frame(PING, b"?"),
        frame(PONG),
        frame(PONG, b"unasked"),
    ]
)
RARE = st.sampled_from([frame(CLOSE), frame(CLOSE, b"\x03\xe8bye"), frame(TEXT, rsv=4), b"\x00", frame(PING) * 11])


class Connections(RuleBasedStateMachine):
    """One connection, and a model of it."""

    @initialize()
    def begin(self) -> None:
        self.now = 50.0
        self.protocol = DeviceProtocol(self.now)
        self.highest = OPEN
        self.accepted: list[bytes] = []  # messages, in order
        self.written: list[bytes] = []
        self.close_frames = 0
        self.taken = 0

    # -- the client

    @rule(data=st.lists(FRAMES, max_size=4).map(b"".join), rest=st.just(b"") | FRAMES.map(lambda whole: whole[:3]))
    def client_speaks(self, data: bytes, rest: bytes) -> None:
        was_open = self.protocol.phase is OPEN
        events = self.protocol.receive(data + rest, self.now, LIMITS)
        assert was_open or not events

    @rule(data=RARE)
    def client_ends_it(self, data: bytes) -> None:
        self.protocol.receive(data, self.now, LIMITS)

    @rule()
    def client_closes_its_side(self) -> None:
        self.protocol.peer_has_gone(self.now, LIMITS)
        assert self.protocol.reading is TO_END

    # -- the gateway

    @rule(size=st.integers(0, 40), interim=st.sampled_from(["", "", "session"]))
    def message_is_sent(self, size: int, interim: str) -> None:
        if self.protocol.phase is not OPEN:
            return
        payload = b"%s%d " % (b"i" if interim else b"", len(self.accepted)) + b"x" * size
        message = text_frame(payload)
        terms = Terms(interim) if interim else None
        queued = self.protocol.outbox.push(message, 0, LIMITS.outbox, terms)
        if not queued:
            queued = self.protocol.squeeze_in(message, 0, terms, self.now, LIMITS, may_drop_low=True).queued
        assert queued or interim or self.protocol.phase is not OPEN
        if not interim:
            self.accepted.append(payload)

    @rule()
    def keepalive_pings(self) -> None:
        self.protocol.ping(self.now)

    @rule()
    def presence_challenges(self) -> None:
        self.protocol.challenge(self.now)

    @rule()
    def there_is_no_room(self) -> None:
        has_gone = self.protocol.reading is TO_END
        self.protocol.pause(self.now)
        assert (self.protocol.reading is TO_END) == has_gone
        assert self.protocol.may_pause or self.protocol.reading is not PAUSED or self.protocol.phase is not OPEN

    @rule()
    def there_is_room_again(self) -> None:
        self.protocol.resume(self.now, LIMITS)

    @rule(keep=st.booleans())
    def gateway_ends_it(self, keep: bool) -> None:
        self.protocol.end(GOING_AWAY if keep else NO_PONG, self.now, LIMITS, keep)

    # -- the socket

    @precondition(lambda self: self.protocol.write is None and self.protocol.phase is not CLOSED)
    @rule(share=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]), committed_bytes=st.sampled_from([0, 0, 1, 30]))
    def flush(self, share: float, committed_bytes: int) -> None:
        """:param share: how much of the write the socket takes
        :param committed_bytes: beyond that, which must not change any more"""
        expected = self.protocol.has_to_send
        data = self.protocol.data_to_send(TAKER)
        assert bool(data) == expected
        taken = round(share * len(data))
        if taken == len(data):
            stamps, _ = self.protocol.sent()
            complete = sent_frames(data)
        else:
            committed = min(len(data), taken + committed_bytes)
            kept, (stamps, _) = self.protocol.blocked(len(data), taken, committed, (self.taken, 0), self.now)
            assert committed <= kept <= len(data)
            complete = complete_frames(data[:kept], taken)
            data = data[:kept]
        assert len(stamps) == [opcode for opcode, _ in complete].count(TEXT)
        self.protocol.advance(self.now, LIMITS)
        frames = sent_frames(data)
        assert not frames or not self.close_frames, "nothing is sent after the close frame"
        opcodes = [opcode for opcode, _ in frames]
        controls = [opcode in CONTROL for opcode in opcodes]
        assert controls == sorted(controls, reverse=True), "control frames go first"
        assert opcodes[:2].count(PING) <= 1
        self.close_frames += opcodes.count(CLOSE)
        assert CLOSE not in opcodes[:-1], "the close frame goes last"
        messages = [payload for opcode, payload in frames if opcode == TEXT]
        self.written += messages

    @precondition(lambda self: self.protocol.write is not None)
    @rule()
    def socket_takes_the_rest(self) -> None:
        self.protocol.sent()
        self.protocol.advance(self.now, LIMITS)

    @precondition(lambda self: self.protocol.write is not None)
    @rule()
    def socket_takes_a_little(self) -> None:
        self.taken += 1
        assert self.protocol.progressed((self.taken, 0), self.now)
        assert not self.protocol.is_stuck(self.now, LIMITS)

    @rule()
    def kernel_has_acknowledged_all(self) -> None:
        challenged, state = self.protocol.heartbeat.challenged, self.protocol.heartbeat.state
        is_life = self.protocol.all_acknowledged()
        assert is_life == (challenged and state is SENT and self.protocol.reading is PAUSED)

    @rule()
    def socket_fails(self) -> None:
        self.protocol.lose("lost")

    # -- the clock

    @rule(seconds=st.floats(0.0, 6.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        deadline = self.protocol.deadline
        if self.protocol.is_stuck(self.now, LIMITS):
            self.protocol.lose("write_timeout")
        elif deadline is not None and self.now >= deadline:
            self.protocol.on_deadline()
            assert self.protocol.phase is CLOSED

    # -- what holds

    @invariant()
    def a_phase_never_goes_back(self) -> None:
        assert self.protocol.phase >= self.highest
        self.highest = self.protocol.phase

    @invariant()
    def whatever_has_begun_to_close_has_a_deadline(self) -> None:
        phase, deadline = self.protocol.phase, self.protocol.deadline
        assert (phase is OPEN) == (self.protocol.closing is None)
        if phase in (OPEN, CLOSED):
            assert deadline is None
        else:
            assert deadline is not None
            assert self.now < deadline <= self.now + LIMITS.write_wait_s

    @invariant()
    def our_close_frame_is_sent_at_most_once_and_before_lingering(self) -> None:
        assert self.close_frames <= 1
        assert self.protocol.phase is not LINGERING or self.close_frames == 1

    @invariant()
    def messages_keep_their_order_and_none_is_lost_but_by_an_end(self) -> None:
        finals = [payload for payload in self.written if payload in set(self.accepted)]
        if self.protocol.phase is OPEN:
            assert finals == self.accepted[: len(finals)]
        else:
            assert finals == [payload for payload in self.accepted if payload in set(finals)]

    @invariant()
    def the_outbox_is_bounded(self) -> None:
        assert len(self.protocol.outbox) <= LIMITS.outbox.max_messages

    @invariant()
    def nothing_goes_out_of_a_closed_one(self) -> None:
        if self.protocol.phase is CLOSED:
            assert not self.protocol.has_to_send
            assert self.protocol.data_to_send(TAKER) == b""

    def teardown(self) -> None:
        """From every state, an ended connection closes as the clock advances."""
        if not hasattr(self, "protocol"):
            return
        self.gateway_ends_it(False)
        for _ in range(3):
            if self.protocol.write is None and self.protocol.phase is not CLOSED:
                self.flush(0.0, 30)
            self.now += LIMITS.write_wait_s
            if self.protocol.deadline is not None and self.now >= self.protocol.deadline:
                self.protocol.on_deadline()
        assert self.protocol.phase is CLOSED


Connections.TestCase.settings = examples(100, steps=25)
TestConnections = Connections.TestCase
