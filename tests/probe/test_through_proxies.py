"""The probe accepts what a proxy may do, and reports what keeps devices out as one failure that says what to
configure."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from cocoa_tornado.probe.delivery import HttpPublisher
from cocoa_tornado.probe.run import run
from cocoa_tornado.probe.target import Target
from cocoa_tornado.probe.verdicts import ProbeError, Report, Status

from .broken_gateways import BrokenGateway
from .scripted_proxy import Change, Head, ScriptedProxy, page, without
from .test_checks import names, outcome, session_for

Script = Callable[[ScriptedProxy], None]


@contextlib.asynccontextmanager
async def proxied(script: Script) -> AsyncIterator[tuple[BrokenGateway, ScriptedProxy]]:
    gateway = BrokenGateway()
    await gateway.start()
    proxy = ScriptedProxy(gateway.port)
    script(proxy)
    await proxy.start()
    try:
        yield gateway, proxy
    finally:
        await proxy.stop()
        await gateway.stop()


def probed(script: Script, prefix: str = "") -> Report:
    async def scenario() -> Report:
        async with proxied(script) as (gateway, proxy):
            target = Target("127.0.0.1", proxy.port, secure=False, prefix=prefix)
            session = session_for(gateway, target=target, publisher=HttpPublisher(target))
            return await run(session, lambda outcome: None)

    return asyncio.run(scenario())


# --- What a proxy may do -------------------------------------------------------------------------------------------


def lower_case(head: Head) -> Head:
    lines = (line.partition(":") for line in head[1:])
    return [head[0], *(f"{name.lower()}{colon}{value}" for name, colon, value in lines)]


def upper_case(head: Head) -> Head:
    lines = (line.partition(":") for line in head[1:])
    return [head[0], *(f"{name.upper()}{colon}{value}" for name, colon, value in lines)]


def with_its_own(head: Head) -> Head:
    return [*head, "Via: 1.1 edge", "Server: edge/2", "Date: now", "X-Request-Id: 7", "Alt-Svc: h3", "Set-Cookie: lb=1"]


def no_upgrade_in_426(head: Head) -> Head:
    return without("upgrade")(head) if " 426 " in head[0] else head


def another_challenge_first(head: Head) -> Head:
    return [head[0], "WWW-Authenticate: Negotiate", *head[1:]] if " 401 " in head[0] else head


def waits_for_longer(head: Head) -> Head:
    return [*without("retry-after")(head), "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT"] if " 409 " in head[0] else head


LEGITIMATE: dict[str, Change] = {
    "lower case": lower_case,
    "upper case": upper_case,
    "headers of its own": with_its_own,
    "no Upgrade in a 426": no_upgrade_in_426,
    "another challenge beside Bearer": another_challenge_first,
    "a Retry-After that is a date": waits_for_longer,
}


@pytest.mark.parametrize("change", LEGITIMATE.values(), ids=LEGITIMATE.keys())
def test_what_a_proxy_may_do_to_an_answer_fails_no_check(change: Change) -> None:
    report = probed(lambda proxy: setattr(proxy, "response", change))

    assert [(o.name, o.detail) for o in report.outcomes if o.status is Status.FAILED] == []


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n"]
)
def test_an_unrequested_interim_response_fails_no_check(interim: bytes) -> None:
    assert probed(lambda proxy: setattr(proxy, "before", interim)).ok


def test_a_deployment_may_stand_under_a_prefix() -> None:
    def strip(head: Head) -> Head:
        return [head[0].replace(" /toys/cocoa/", " /"), *head[1:]]

    assert probed(lambda proxy: setattr(proxy, "request", strip), prefix="/toys/cocoa").ok


def test_a_proxy_may_keep_readiness_to_the_inside() -> None:
    report = probed(
        lambda proxy: setattr(proxy, "answer", lambda head: page("404 Not Found") if "/ready" in head[0] else b"")
    )

    assert report.ok
    assert outcome(report, "ready").status is Status.SKIPPED


def test_a_proxy_that_takes_no_records_leaves_delivery_unchecked() -> None:
    def answer(head: Head) -> bytes:
        return page("403 Forbidden") if "/transcriptions" in head[0] else b""

    report = probed(lambda proxy: setattr(proxy, "answer", answer))

    assert names(report, Status.FAILED) == set()
    assert "--broker" in outcome(report, "delivery").detail


# --- What keeps devices out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [("upgrade", "connection"), ("upgrade",)])
def test_an_upgrade_that_is_not_passed_on_is_one_failure(headers: tuple[str, ...]) -> None:
    report = probed(lambda proxy: setattr(proxy, "request", without(*headers)))

    assert names(report, Status.FAILED) == {"handshake"}
    assert "proxy_set_header Upgrade" in outcome(report, "handshake").detail
    assert outcome(report, "no-token").detail == "no handshake reaches the gateway"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("400 Bad Request", "the upgrade does not reach the gateway"),
        ("200 OK", "something else than the gateway"),
        ("404 Not Found", "something else than the gateway"),
        ("502 Bad Gateway", "reaches no gateway"),
        ("504 Gateway Timeout", "reaches no gateway"),
    ],
)
def test_a_proxy_that_answers_handshakes_itself_is_one_failure(status: str, words: str) -> None:
    def answer(head: Head) -> bytes:
        return page(status, "Server: edge") if "/ws" in head[0] else b""

    report = probed(lambda proxy: setattr(proxy, "answer", answer))

    assert names(report, Status.FAILED) == {"handshake"}
    assert words in outcome(report, "handshake").detail
    assert "(edge)" in outcome(report, "handshake").detail


_MESSAGE = b'{"message":"Host not allowed: add its name to the setting allowed_hosts"}'
HOST_NOT_ALLOWED = b"HTTP/1.1 421 Misdirected Request\r\nContent-Length: %d\r\n\r\n%b" % (len(_MESSAGE), _MESSAGE)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (page("308 Permanent Redirect", "Location: https://gw.example/api/v1/health"), "try wss://gw.example/ws"),
        (page("502 Bad Gateway", "Server: edge"), "reaches no gateway"),
        (HOST_NOT_ALLOWED, "by this host name: Host not allowed: add its name to the setting allowed_hosts$"),
        (page("400 The plain HTTP request was sent to HTTPS port"), "it is a TLS port"),
        (b"\0\0\x12\x04\0\0\0\0\0\0\3\0\0\0\x64", "HTTP/2 alone"),
    ],
    ids=["redirect", "no gateway", "host", "tls port", "http/2"],
)
def test_what_is_wrong_with_the_whole_url_is_one_line(answer: bytes, words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        probed(lambda proxy: setattr(proxy, "answer", lambda head: answer))


def test_a_replaced_host_is_named_where_it_keeps_pages_out() -> None:
    """A gateway that is given another Host than the page used refuses the page, as the proxy does for it here."""

    def answer(head: Head) -> bytes:
        refusal = b'{"message":"Origin not allowed"}'
        own = any(line.startswith("Origin: http://127.0.0.1") for line in head)
        return b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%b" % (len(refusal), refusal) if own else b""

    report = probed(lambda proxy: setattr(proxy, "answer", answer))

    assert names(report, Status.FAILED) == {"own-origin"}
    assert "proxy_set_header Host" in outcome(report, "own-origin").detail


def test_chunked_uploads_that_a_proxy_refuses_are_named() -> None:
    def answer(head: Head) -> bytes:
        return page("411 Length Required") if "/audio/stream" in head[0] else b""

    report = probed(lambda proxy: setattr(proxy, "answer", answer))

    assert names(report, Status.FAILED) == {"live-upload"}
    assert "411" in outcome(report, "live-upload").detail
