"""Every check passes against a gateway that keeps the contract, and fails against the one that breaks just that."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from contextlib import closing
from dataclasses import replace

import pytest

from cocoa_tornado.probe import run as run_module
from cocoa_tornado.probe.credentials import Device, Key, from_token, minted
from cocoa_tornado.probe.delivery import HttpPublisher
from cocoa_tornado.probe.device import Link, Message
from cocoa_tornado.probe.run import CHECKS, SERVER_CHECKS, listen, run
from cocoa_tornado.probe.session import HELD, Limits, Session
from cocoa_tornado.probe.target import Target
from cocoa_tornado.probe.verdicts import Outcome, ProbeError, Report, Status
from testing.ports import ReservedPort

from .broken_gateways import SECRET, BrokenGateway, Fault

KEY = Key("the test", SECRET)
QUICK = Limits(timeout_s=1.0, challenge_s=0.2, at_once_s=1.0, quiet_s=0.1, server_ping_s=0.2)
IDLE_S = 0.6
ALL = {check.name for check in CHECKS}
NOT_ASKED_FOR = {"audio"}
LONG = {"idle", "server-ping"}

BREAKS: list[tuple[Fault, set[str]]] = [
    (Fault.HEALTH_HAS_BLANKS, {"health"}),
    (Fault.NOT_READY, {"ready"}),
    (Fault.READY_SAYS_NOTHING, {"ready"}),
    (Fault.HTML_ERRORS, {"unknown-route"}),
    (Fault.UPLOAD_HELD_BACK, {"live-upload"}),
    (Fault.PLAIN_GET_IS_400, {"plain-get"}),
    (Fault.NO_TOKEN_LET_IN, {"no-token"}),
    (Fault.OTHER_401_BODY, {"no-token"}),
    (
        Fault.NO_WWW_AUTHENTICATE,
        {"no-token", "bad-token", "bad-signature", "changed-claims", "alg-none", "expired", "no-device-id"},
    ),
    (Fault.BAD_TOKEN_IS_400, {"bad-token"}),
    (Fault.SIGNATURE_IGNORED, {"bad-signature", "changed-claims"}),
    (Fault.ALG_NONE_ACCEPTED, {"alg-none"}),
    (Fault.EXPIRED_ACCEPTED, {"expired"}),
    (Fault.NO_DEVICE_ID_ACCEPTED, {"no-device-id"}),
    (Fault.QUERY_TOKEN_IGNORED, {"token-query"}),
    (Fault.BEARER_NOT_SELECTED, {"token-subprotocol"}),
    (Fault.OTHER_SUBPROTOCOL_SELECTED, {"subprotocols"}),
    (Fault.ANY_ORIGIN, {"foreign-origin"}),
    (Fault.NO_ORIGIN_AT_ALL, {"own-origin"}),
    (Fault.NO_PONG, {"ping"}),
    (Fault.OTHER_PONG, {"ping"}),
    (Fault.NO_409, {"duplicate"}),
    (Fault.ACCEPT_THEN_CLOSE, {"duplicate"}),
    (Fault.INCUMBENT_EVICTED, {"duplicate"}),
    (Fault.NO_RETRY_AFTER, {"duplicate"}),
    (Fault.NOTHING_DELIVERED, {"delivery", "order", "isolation", "priority", "group"}),
    (Fault.MESSAGE_HAS_BLANKS, {"delivery"}),
    (Fault.TYPE_LAST, {"delivery"}),
    (Fault.MESSAGE_ESCAPED, {"delivery"}),
    (Fault.UNKNOWN_FIELDS_LOST, {"delivery"}),
    (Fault.OUT_OF_ORDER, {"order"}),
    (Fault.BROADCAST, {"isolation", "group"}),
    (Fault.PRIORITY_SWAPPED, {"priority"}),
    (Fault.HIGH_OVERTAKEN, {"priority"}),
    (Fault.HIGH_LOST, {"priority"}),
    (Fault.PRIORITY_PASSED_ON, {"priority"}),
    (Fault.ADDRESS_ACCEPTED, {"addressing"}),
    (Fault.EXCEPT_ACCEPTED, {"addressing"}),
    (Fault.GROUP_NOT_REACHED, {"group"}),
    (Fault.GROUP_DOUBLED, {"group"}),
    (Fault.GROUP_LEAKED, {"group"}),
    (Fault.EXCEPT_IGNORED, {"group"}),
    (Fault.TO_PASSED_ON, {"group"}),
    (Fault.CLOSE_NOT_ANSWERED, {"close"}),
    (Fault.SLOT_KEPT_AFTER_CLOSE, {"clean-up-close"}),
    (Fault.SLOT_KEPT_AFTER_RESET, {"clean-up-reset"}),
    (Fault.OVERSIZE_ACCEPTED, {"oversize"}),
    (Fault.OVERSIZE_CUT, {"oversize"}),
    (Fault.INVALID_FRAME_IGNORED, {"invalid-frame"}),
]


class Backend:
    def __init__(self, gateway: BrokenGateway) -> None:
        self._gateway = gateway

    async def publish_to_others(self, key: str, value: bytes) -> str | None:
        self._gateway.produce(json.loads(value))
        return None


def session_for(gateway: BrokenGateway, **fields: object) -> Session:
    """A session with everything that a run can have, and short times."""
    target = Target("127.0.0.1", gateway.port, secure=False)
    now = time.time()
    session = Session(
        target,
        minted(KEY, "probe-first", now),
        HttpPublisher(target),
        QUICK,
        Backend(gateway),
        other=minted(KEY, "probe-second", now),
        key=KEY,
    )
    for name, value in fields.items():
        setattr(session, name, value)
    return session


async def probed(*faults: Fault, held: str | None = None, **fields: object) -> Report:
    gateway = BrokenGateway(*faults)
    await gateway.start()
    if held:
        gateway.hold(held)
    try:
        return await run(session_for(gateway, **fields), lambda outcome: None)
    finally:
        await gateway.stop()


async def probed_together(*faults: Fault, **fields: object) -> Report:
    """Of three servers, where the first keeps the contract unless the fault is in what it forwards."""
    first = BrokenGateway(*faults)
    others = [BrokenGateway(*faults, beside=first), BrokenGateway(beside=first)]
    for gateway in (first, *others):
        await gateway.start()
    also = [Target("127.0.0.1", gateway.port, secure=False) for gateway in others]
    try:
        return await run(session_for(first, also=also, **fields), lambda outcome: None)
    finally:
        for gateway in (first, *others):
            await gateway.stop()


def names(report: Report, status: Status) -> set[str]:
    return {outcome.name for outcome in report.outcomes if outcome.status is status}


def outcome(report: Report, name: str) -> Outcome:
    return next(outcome for outcome in report.outcomes if outcome.name == name)


def given(device_id: str = "doll") -> Device:
    return replace(minted(KEY, device_id, time.time()), given=True)


def test_a_gateway_that_keeps_the_contract_passes_every_check() -> None:
    report = asyncio.run(probed(idle_s=IDLE_S))

    assert names(report, Status.FAILED) == set()
    assert names(report, Status.PASSED) == ALL - NOT_ASKED_FOR
    assert report.ok


@pytest.mark.parametrize(("fault", "failing"), BREAKS, ids=[fault.name.lower() for fault, _ in BREAKS])
def test_a_broken_promise_fails_its_own_check_and_no_other(fault: Fault, failing: set[str]) -> None:
    report = asyncio.run(probed(fault))

    assert names(report, Status.FAILED) == failing
    assert not report.ok


def test_a_message_delivered_twice_is_noticed() -> None:
    report = asyncio.run(probed(Fault.DELIVERED_TWICE))

    assert names(report, Status.FAILED) == {"order", "isolation", "priority", "group"}


def test_a_slot_that_is_freed_late_is_not_freed_at_once() -> None:
    report = asyncio.run(probed(Fault.SLOT_FREED_LATE, limits=replace(QUICK, at_once_s=0.1)))

    assert re.search(r"only after \d+\.\d s", outcome(report, "clean-up-close").detail)


@pytest.mark.parametrize(
    "fault", [Fault.WRONG_ACCEPT_KEY, Fault.UNASKED_EXTENSION], ids=lambda fault: fault.name.lower()
)
def test_without_a_handshake_the_checks_that_need_one_are_skipped_with_the_reason(fault: Fault) -> None:
    report = asyncio.run(probed(fault))

    needing = {check.name for check in CHECKS if check.connects} - {"handshake"}
    assert names(report, Status.FAILED) == {"handshake"}
    assert names(report, Status.SKIPPED) == needing | {"expired", "no-device-id"}
    assert outcome(report, "delivery").detail == "the handshake failed"


def test_a_gateway_with_a_mailbox_may_add_its_cursor() -> None:
    report = asyncio.run(probed(Fault.CURSORS))

    assert report.ok


def test_a_plain_get_may_be_answered_426_with_any_token() -> None:
    report = asyncio.run(probed(Fault.PLAIN_GET_NOT_JUDGED))

    assert outcome(report, "plain-get").status is Status.PASSED


def test_a_426_without_upgrade_passes_with_a_note() -> None:
    report = asyncio.run(probed(Fault.UPGRADE_TAKEN_OUT))

    assert names(report, Status.FAILED) == set()
    assert outcome(report, "plain-get").detail == "without the header Upgrade, which a proxy has to remove"


def test_a_plain_get_of_a_device_that_connects_elsewhere_is_not_a_failed_426() -> None:
    async def scenario() -> Report:
        gateway = BrokenGateway()
        await gateway.start()

        def another_takes_the_place(outcome: Outcome) -> None:
            if outcome.name == "foreign-origin":
                gateway.hold("doll")

        try:
            return await run(session_for(gateway, device=given()), another_takes_the_place)
        finally:
            await gateway.stop()

    assert outcome(asyncio.run(scenario()), "plain-get").detail == HELD


def test_without_http_publishing_delivery_is_skipped_and_the_way_out_named() -> None:
    report = asyncio.run(probed(Fault.NO_HTTP_PUBLISH))

    assert {"delivery", "order", "isolation", "priority"} <= names(report, Status.SKIPPED)
    assert "--broker" in outcome(report, "delivery").detail
    assert outcome(report, "addressing").status is Status.PASSED
    assert outcome(report, "addressing").detail == "the gateway takes no records over HTTP"
    assert report.ok


def test_without_a_broker_a_group_is_skipped_and_the_way_out_named() -> None:
    report = asyncio.run(probed(backend=None))

    assert outcome(report, "group").status is Status.SKIPPED
    assert "--broker" in outcome(report, "group").detail
    assert report.ok


def test_a_live_device_keeps_its_place_and_the_run_fails() -> None:
    report = asyncio.run(probed(held="doll", device=given()))

    assert names(report, Status.FAILED) == {"handshake"}
    assert outcome(report, "handshake").detail == HELD
    assert outcome(report, "ping").status is Status.SKIPPED
    assert outcome(report, "no-token").status is Status.PASSED


def test_take_over_tries_again_for_as_long_as_a_challenge_lasts() -> None:
    async def scenario() -> Report:
        gateway = BrokenGateway()
        await gateway.start()
        gateway.hold("doll")
        asyncio.get_running_loop().call_later(0.2, gateway._slots.clear)
        try:
            return await run(session_for(gateway, device=given(), take_over=True), lambda outcome: None)
        finally:
            await gateway.stop()

    assert asyncio.run(scenario()).ok


def test_a_live_second_device_fails_the_isolation_check_only() -> None:
    report = asyncio.run(probed(held="doll", other=given()))

    assert names(report, Status.FAILED) == {"isolation"}


def test_a_device_that_connects_elsewhere_is_not_fought() -> None:
    async def scenario() -> tuple[Report, list[str]]:
        gateway = BrokenGateway()
        await gateway.start()

        def another_takes_the_place(outcome: Outcome) -> None:
            if outcome.name == "isolation":
                connection = gateway._slots["doll"][0]
                connection.send(8, b"\x11\x39")  # 4409
                gateway.hold("doll")

        try:
            report = await run(session_for(gateway, device=given()), another_takes_the_place)
            return report, gateway.opened
        finally:
            await gateway.stop()

    report, opened = asyncio.run(scenario())
    assert opened.count("doll") == 1
    assert outcome(report, "clean-up-close").status is Status.SKIPPED
    assert not report.ok


def test_a_given_device_whose_slot_is_not_freed_is_left_alone() -> None:
    report = asyncio.run(probed(Fault.SLOT_KEPT_AFTER_CLOSE, device=given()))

    assert names(report, Status.FAILED) == {"clean-up-close"}
    assert outcome(report, "token-query").detail == "the gateway has not freed the device's slot"


def test_without_a_key_nothing_is_said_of_expired_tokens() -> None:
    report = asyncio.run(probed(key=None, device=from_token(given().token), other=None))

    assert names(report, Status.SKIPPED) == {"audio", "isolation", "group", "expired", "no-device-id"} | LONG
    assert report.ok


def test_a_key_that_is_not_the_gateways_proves_nothing() -> None:
    report = asyncio.run(probed(key=Key("the test", "another secret, of another gateway"), device=given()))

    assert outcome(report, "expired").status is Status.SKIPPED


def test_a_token_that_the_gateway_echoes_is_not_repeated() -> None:
    token = given().token
    report = asyncio.run(probed(Fault.TOKEN_ECHOED, device=from_token(token)))

    assert not report.ok
    assert all(
        token.rsplit(".")[1] not in outcome.detail for outcome in report.outcomes if outcome.name != "changed-claims"
    )


def test_a_short_idle_time_says_nothing_of_server_pings() -> None:
    report = asyncio.run(probed(idle_s=0.1))

    assert outcome(report, "idle").status is Status.PASSED
    assert outcome(report, "server-ping").status is Status.SKIPPED


def test_a_cut_idle_connection_is_reported_with_its_time() -> None:
    report = asyncio.run(probed(Fault.IDLE_CUT, idle_s=IDLE_S))

    assert names(report, Status.FAILED) == {"idle"}
    assert re.search(r"cut after \d+\.\d s", outcome(report, "idle").detail)
    assert "without a close frame" in outcome(report, "idle").detail


def test_a_gateway_that_never_pings_is_noticed() -> None:
    report = asyncio.run(probed(Fault.NO_SERVER_PING, idle_s=IDLE_S))

    assert names(report, Status.FAILED) == {"server-ping"}


def test_a_refused_connection_is_one_plain_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gateway = BrokenGateway()
        gateway.port = unused.getsockname()[1]

        with pytest.raises(ProbeError, match=r"cannot connect to 127\.0\.0\.1:\d+: Connection refused"):
            asyncio.run(run(session_for(gateway), lambda outcome: None))


@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-OpenSSH_9.6\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"]
)
def test_something_that_is_no_http_server_is_one_plain_line(greeting: bytes) -> None:
    async def scenario() -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(greeting)
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        gateway = BrokenGateway()
        gateway.port = server.sockets[0].getsockname()[1]
        try:
            await run(session_for(gateway), lambda outcome: None)
        finally:
            server.close()

    with pytest.raises(ProbeError, match=r"127\.0\.0\.1"):
        asyncio.run(scenario())


def test_a_check_that_hangs_is_ended_in_time() -> None:
    async def hangs(session: Session) -> None:
        await asyncio.Event().wait()

    async def scenario() -> Outcome:
        gateway = BrokenGateway()
        check = run_module.Check("hangs", "it hangs", hangs)  # type: ignore[arg-type]  # it never returns anything
        session = session_for(gateway, limits=Limits(timeout_s=0.05))
        return await run_module._outcome(check, session)

    result = asyncio.run(scenario())
    assert result.status is Status.FAILED
    assert result.detail.startswith("no answer within")


def test_listening_hands_over_every_message() -> None:
    async def scenario() -> list[Message]:
        gateway = BrokenGateway()
        await gateway.start()
        session = session_for(gateway)
        messages: list[Message] = []
        arrived = asyncio.Event()

        def take(message: Message) -> None:
            messages.append(message)
            arrived.set()

        task = asyncio.create_task(listen(session, 0, take))
        while not gateway.opened:
            await asyncio.sleep(0.01)
        assert await session.publisher.publish(session.device, b'{"device_id":"probe-first","text":"hi"}') is None
        await asyncio.wait_for(arrived.wait(), 5)
        task.cancel()
        await asyncio.wait([task])
        await gateway.stop()
        return messages

    assert asyncio.run(scenario()) == ['{"type":"transcription","device_id":"probe-first","text":"hi"}']


def test_listening_as_a_device_that_is_connected_is_refused() -> None:
    async def scenario() -> None:
        gateway = BrokenGateway()
        await gateway.start()
        gateway.hold("probe-first")
        try:
            await listen(session_for(gateway), 1, lambda message: None)
        finally:
            await gateway.stop()

    with pytest.raises(ProbeError, match=HELD):
        asyncio.run(scenario())


def test_listening_ends_with_an_error_where_the_gateway_hangs_up() -> None:
    async def scenario() -> None:
        gateway = BrokenGateway(Fault.IDLE_CUT)
        await gateway.start()
        try:
            await listen(session_for(gateway), 5, lambda message: None)
        finally:
            await gateway.stop()

    with pytest.raises(ProbeError, match="without a close frame"):
        asyncio.run(scenario())


def test_a_link_waits_for_no_more_once_it_is_lost() -> None:
    async def scenario() -> bool:
        gateway = BrokenGateway(Fault.IDLE_CUT)
        await gateway.start()
        link: Link = await session_for(gateway).hold()
        try:
            await link.until(lambda: not link.is_open)
            return await link.answers_ping()
        finally:
            await link.drop()
            await gateway.stop()

    assert asyncio.run(asyncio.wait_for(scenario(), 5)) is False


# -- several servers

OF_SERVERS = {check.name for check in SERVER_CHECKS}


def test_servers_that_keep_the_contract_pass_every_check() -> None:
    report = asyncio.run(probed_together(idle_s=IDLE_S))

    assert names(report, Status.FAILED) == set()
    assert names(report, Status.PASSED) == (ALL | OF_SERVERS) - NOT_ASKED_FOR


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        (Fault.SLOTS_OF_ITS_OWN, {"servers-duplicate", "servers-delivery", "servers-isolation"}),
        (Fault.NOT_FORWARDED, {"servers-delivery", "servers-isolation"}),
        (Fault.FORWARDED_TWICE, {"servers-delivery", "servers-isolation"}),
        (Fault.FORWARDED_TO_ALL, {"servers-isolation"}),
        (Fault.FREED_LATE_ELSEWHERE, {"servers-clean-up", "servers-duplicate"}),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Fault) else "",
)
def test_what_does_not_hold_across_servers_fails_its_own_check_and_no_other(fault: Fault, failing: set[str]) -> None:
    report = asyncio.run(probed_together(fault))

    assert names(report, Status.FAILED) == failing


def test_a_server_that_is_not_ready_is_named() -> None:
    report = asyncio.run(probed_together(Fault.NOT_READY))

    assert names(report, Status.FAILED) == {"ready", "servers-ready"}
    assert outcome(report, "servers-ready").detail.startswith("127.0.0.1:")


async def probed_beside(port: int) -> Report:
    """Of a server that keeps the contract, and another one that does not answer there."""
    gateway = BrokenGateway()
    await gateway.start()
    also = [Target("127.0.0.1", port, secure=False)]
    limits = replace(QUICK, timeout_s=0.2, challenge_s=0.1)
    try:
        return await run(session_for(gateway, also=also, limits=limits), lambda outcome: None)
    finally:
        await gateway.stop()


def test_a_server_that_cannot_be_reached_is_named() -> None:
    with closing(ReservedPort()) as reserved:
        report = asyncio.run(probed_beside(reserved.number))

    details = {outcome.detail for outcome in report.outcomes if outcome.name in OF_SERVERS}
    assert details == {f"cannot connect to 127.0.0.1:{reserved.number}: Connection refused"}


def test_a_server_that_does_not_answer_is_named_and_is_not_waited_for_longer_than_for_any_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        report = asyncio.run(probed_beside(port))

    details = {outcome.detail for outcome in report.outcomes if outcome.name in OF_SERVERS}
    assert details == {f"127.0.0.1:{port}: no answer within 0.3 s"}
