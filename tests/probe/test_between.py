"""The reports about answers of proxies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.probe.between import is_blocked, no_gateway, no_upgrade, note_on_426
from cocoa_tornado.probe.target import Target
from cocoa_tornado.probe.wire import Response

PLAIN = Target("gateway.example", 80, secure=False)
SECURE = Target("gateway.example", 443, secure=True)
PAGE = b"<html><head><title>from a proxy</title></head></html>"


def message(status: int, text: str = "x") -> Response:
    return Response(status, (), b'{"message":"%b"}' % text.encode())


def to(location: str, status: int = 301) -> Response:
    return Response(status, (("Location", location),), PAGE)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_one_diagnosis_and_says_where_to_go(status: int) -> None:
    response = to("https://gateway.example:8443/cocoa/api/v1/health?a=b", status)
    problem = no_gateway(PLAIN, response)

    assert problem is not None
    assert problem.endswith("a device follows no redirect; try wss://gateway.example:8443/cocoa/ws")
    assert no_upgrade(response) is not None


@pytest.mark.parametrize("location", ["/login", "//a/b", "ftp://a/", "https://user:password@a/", "http://[", ""])
def test_a_redirect_to_no_gateway_suggests_none(location: str) -> None:
    assert "try" not in str(no_gateway(PLAIN, to(location)))


@pytest.mark.parametrize(
    "body",
    [b"<h1>The plain HTTP request was sent to HTTPS port</h1>", b"Client sent an HTTP request to an HTTPS server.\n"],
)
def test_plain_http_on_a_tls_port_is_named(body: bytes) -> None:
    assert "wss://" in str(no_gateway(PLAIN, Response(400, (), body)))
    assert no_gateway(SECURE, Response(400, (), body)) is None


@pytest.mark.parametrize("response", [Response(502, (), PAGE), message(503), Response(504)])
def test_a_proxy_that_reaches_no_gateway_is_one_diagnosis(response: Response) -> None:
    assert "reaches no gateway" in str(no_gateway(SECURE, response))


@pytest.mark.parametrize("response", [Response(200, (), b"{}"), Response(404, (), PAGE), Response(403, (), PAGE)])
def test_what_is_said_of_health_alone_ends_nothing(response: Response) -> None:
    assert no_gateway(SECURE, response) is None


@pytest.mark.parametrize("response", [message(426, "Upgrade Required"), message(400), Response(400, (), PAGE)])
def test_an_upgrade_that_is_lost_is_named_with_what_to_configure(response: Response) -> None:
    assert "the upgrade does not reach the gateway; a proxy must" in str(no_upgrade(response))


@pytest.mark.parametrize("response", [Response(200, (), PAGE), Response(404, (), PAGE), Response(204)])
def test_another_server_at_the_path_is_named(response: Response) -> None:
    assert "something else than the gateway answers" in str(no_upgrade(response))


def test_a_gateway_below_another_path_is_named() -> None:
    assert "check the path of the URL" in str(no_upgrade(message(404, "Not Found")))


def test_a_proxys_own_failure_at_the_handshake_is_named() -> None:
    assert "reaches no gateway" in str(no_upgrade(Response(504, (), PAGE)))


@pytest.mark.parametrize("response", [message(status) for status in (401, 403, 409, 503)] + [Response(101)])
def test_the_gateways_own_words_are_its_own(response: Response) -> None:
    assert no_upgrade(response) is None


def test_a_route_is_blocked_by_who_does_not_answer_as_the_gateway_does() -> None:
    assert [is_blocked(Response(status, (), PAGE)) for status in (403, 404, 405, 500)] == [True, True, True, False]
    assert not is_blocked(message(403))


def test_a_426_is_noted_where_a_proxy_has_changed_it() -> None:
    assert note_on_426(Response(426, (("upgrade", "WebSocket"),))) == ""
    assert note_on_426(Response(426)) != ""


@given(st.integers(100, 599), st.text(), st.binary())
def test_any_response_is_described_in_one_printable_line(status: int, location: str, body: bytes) -> None:
    response = Response(status, (("Location", location), ("Server", location)), body)
    for problem in (no_gateway(PLAIN, response), no_upgrade(response), note_on_426(response)):
        assert problem is None or problem.isprintable()
