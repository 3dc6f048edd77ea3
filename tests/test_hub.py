"""The Hub: routing to exactly one device, and removal by identity."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from cocoa_tornado.hub import Hub, Refused
from cocoa_tornado.rules.close_codes import CloseReason
from cocoa_tornado.rules.frames import text_frame
from cocoa_tornado.rules.slots import SlotLimits, Ticket


@dataclass(eq=False)
class FakeClient:
    """A client that writes down what the Hub asks of it. It answers challenges only if told to."""

    hub: Hub
    ticket: Ticket
    answers: bool = True
    sent: list[bytes] = field(default_factory=list)
    challenges: int = 0
    closed: int = 0

    def send(self, frame: bytes, timestamp_ms: int, interim_of: str = "") -> None:
        self.sent.append(frame)

    def stored(self, number: int, frame: bytes, timestamp_ms: int) -> None:
        self.sent.append(frame)

    def look_again(self) -> None:
        pass

    def suggest(self, payload: bytes, timestamp_ms: int, interim_of: str) -> None:
        self.sent.append(payload)

    def challenge(self) -> None:
        self.challenges += 1
        if self.answers:
            asyncio.get_running_loop().call_soon(self.hub.answered, self)

    def end(self, reason: CloseReason, keep_queued: bool = False) -> None:
        self.closed = reason.code
        self.hub.unregister(self)


def make_hub(**limits: object) -> Hub:
    return Hub(SlotLimits(challenge_s=0.05, **limits), time.monotonic)  # type: ignore[arg-type]  # keywords of a test


async def connect(hub: Hub, device_id: str = "doll", answers: bool = True) -> FakeClient:
    client = FakeClient(hub, await hub.reserve(device_id), answers)
    hub.register(client)
    return client


@pytest.mark.gen_test
async def test_a_message_goes_to_its_device_and_to_no_other() -> None:
    hub = make_hub()
    one, two = await connect(hub, "one"), await connect(hub, "two")
    assert hub.send_to_device("one", b"x") == 1
    assert (one.sent, two.sent) == ([text_frame(b"x")], [])


@pytest.mark.gen_test
async def test_a_message_for_a_stranger_goes_nowhere() -> None:
    hub = make_hub()
    one = await connect(hub, "one")
    assert hub.send_to_device("two", b"x") == 0
    assert one.sent == []


@pytest.mark.gen_test
async def test_a_broadcast_reaches_everyone_once() -> None:
    hub = make_hub()
    clients = [await connect(hub, str(number)) for number in range(5)]
    assert hub.broadcast(b"x") == 5
    assert [client.sent for client in clients] == [[text_frame(b"x")]] * 5


@pytest.mark.gen_test
async def test_a_reserved_slot_is_not_yet_a_connection() -> None:
    hub = make_hub()
    ticket = await hub.reserve("doll")
    assert not hub.is_device_connected("doll")
    assert hub.get_client_by_device("doll") is None
    assert hub.slots_taken == 1
    hub.release(ticket)
    assert hub.slots_taken == 0


@pytest.mark.gen_test
async def test_a_live_incumbent_keeps_its_place_and_the_newcomer_is_refused_at_once() -> None:
    hub = make_hub()
    incumbent = await connect(hub)
    with pytest.raises(Refused) as refused:
        await hub.reserve("doll")
    assert refused.value.reason == "device"
    assert hub.get_client_by_device("doll") is incumbent
    assert incumbent.challenges == 1


@pytest.mark.gen_test
async def test_a_silent_incumbent_is_replaced() -> None:
    hub = make_hub()
    incumbent = await connect(hub, answers=False)
    newcomer = await connect(hub)
    assert incumbent.closed == 4409
    assert hub.get_client_by_device("doll") is newcomer


@pytest.mark.gen_test
async def test_a_late_close_of_the_old_connection_does_not_touch_the_new_one() -> None:
    hub = make_hub()
    incumbent = await connect(hub, answers=False)
    newcomer = await connect(hub)
    assert not hub.unregister(incumbent)
    assert hub.get_client_by_device("doll") is newcomer
    assert len(hub) == hub.slots_taken == 1


@pytest.mark.gen_test
async def test_of_a_devices_two_connections_a_close_removes_its_own() -> None:
    hub = make_hub(per_device=2)
    first, second = await connect(hub), await connect(hub)
    assert hub.unregister(first)
    assert (len(hub), hub.clients_of("doll"), hub.get_client_by_device("doll")) == (1, [second], second)
    assert not hub.unregister(first)
    assert hub.send_to_device("doll", b"x") == 1
    assert (first.sent, second.sent) == ([], [text_frame(b"x")])
    assert hub.unregister(second)
    assert (len(hub), hub.slots_taken, hub.is_device_connected("doll")) == (0, 0, False)


@pytest.mark.gen_test
async def test_many_newcomers_make_one_challenge_and_one_winner() -> None:
    hub = make_hub()
    incumbent = await connect(hub, answers=False)
    outcomes = await asyncio.gather(*(hub.reserve("doll") for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(outcome, Ticket) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Refused) for outcome in outcomes) == 7
    assert incumbent.challenges == 1


@pytest.mark.gen_test
async def test_a_newcomer_that_is_cancelled_leaves_no_slot_behind() -> None:
    hub = make_hub()
    incumbent = await connect(hub, answers=False)
    waiting = asyncio.ensure_future(hub.reserve("doll"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    hub.unregister(incumbent)
    assert hub.slots_taken == 0


@pytest.mark.gen_test
async def test_a_newcomer_cancelled_in_the_turn_of_its_admission_gives_the_slot_back() -> None:
    hub = make_hub()
    incumbent = await connect(hub, answers=False)
    waiting = asyncio.ensure_future(hub.reserve("doll"))
    await asyncio.sleep(0)
    hub.unregister(incumbent)  # admits the newcomer, whose task has not run yet
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert hub.slots_taken == 0


@pytest.mark.gen_test
async def test_a_newcomer_cancelled_in_the_turn_of_its_refusal_leaves_nothing_behind() -> None:
    hub = make_hub()
    incumbent = await connect(hub, answers=False)
    waiting = asyncio.ensure_future(hub.reserve("doll"))
    await asyncio.sleep(0)
    hub.answered(incumbent)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert hub.slots_taken == 1


@pytest.mark.gen_test
async def test_draining_refuses_newcomers_and_keeps_who_is_there() -> None:
    hub = make_hub()
    client = await connect(hub)
    hub.drain()
    with pytest.raises(Refused, match="draining"):
        await hub.reserve("other")
    assert hub.get_client_by_device("doll") is client


@pytest.mark.gen_test
async def test_two_hubs_do_not_meet() -> None:
    one, two = make_hub(), make_hub()
    await connect(one)
    assert not two.is_device_connected("doll")
    assert len(two) == 0


@pytest.mark.gen_test
async def test_the_repr_is_one_line() -> None:
    hub = make_hub()
    await connect(hub)
    assert repr(hub) == "<Hub 1 connections of 1 devices, open>"


@pytest.mark.gen_test
async def test_registering_without_a_ticket_is_refused() -> None:
    hub = make_hub()
    with pytest.raises(KeyError):
        hub.register(FakeClient(hub, Ticket("doll", 99)))
