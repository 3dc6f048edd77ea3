"""Requests as bytes, responses from bytes."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.probe.target import Target
from cocoa_tornado.probe.wire import (
    MAX_HEAD_BYTES,
    NotHttpError,
    Response,
    Upgrade,
    body_pieces,
    json_value,
    parse_head,
    read_head,
    read_response,
    request_bytes,
    upgrade_request,
)

TARGET = Target("gateway.example", 8080, secure=False, prefix="/base")


def parsed(data: bytes) -> Response:
    async def read() -> Response:
        reader = asyncio.StreamReader(limit=64 * 1024)
        reader.feed_data(data)
        reader.feed_eof()
        return await read_response(reader)

    return asyncio.run(read())


def lines(upgrade: Upgrade) -> list[str]:
    return upgrade_request(TARGET, upgrade).decode().split("\r\n")


def test_the_token_is_sent_as_requested() -> None:
    assert "Authorization: Bearer a.b.c" in lines(Upgrade("a.b.c"))
    assert lines(Upgrade("a.b.c", "query"))[0] == "GET /base/ws?token=a.b.c HTTP/1.1"
    assert "Sec-WebSocket-Protocol: bearer, a.b.c, mqtt" in lines(Upgrade("a.b.c", "subprotocol", protocols=["mqtt"]))


def test_without_a_token_none_is_sent() -> None:
    request = lines(Upgrade(None, origin="https://o.example"))

    assert "Origin: https://o.example" in request
    assert not any("bearer" in line.lower() or "token" in line for line in request)


def test_every_handshake_has_its_own_key() -> None:
    assert Upgrade("t").key != Upgrade("t").key


def test_the_token_is_not_in_the_repr() -> None:
    assert "secret-token" not in repr(Upgrade("secret-token"))


def test_a_request_with_a_body_says_its_length() -> None:
    assert request_bytes("POST", "/x", TARGET, [("A", "b")], b"body") == (
        b"POST /x HTTP/1.1\r\nHost: gateway.example:8080\r\nUser-Agent: cocoa-probe\r\nA: b\r\n"
        b"Content-Length: 4\r\n\r\nbody"
    )


def test_a_sized_body_ends_where_it_says() -> None:
    response = parsed(b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 2\r\nX: a\r\nX: b\r\n\r\nokmore")

    assert (response.status, response.body, response.header("x")) == (200, b"ok", "a")


def test_a_chunked_body_is_put_together() -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: 1\r\n\r\n"
    assert parsed(data).body == b"abcde"


def test_a_body_of_unknown_length_ends_with_the_connection() -> None:
    assert parsed(b"HTTP/1.0 404 Not Found\r\n\r\nall of it").body == b"all of it"


def test_interim_responses_are_passed_over_but_not_the_upgrade() -> None:
    assert parsed(b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 204 No\r\n\r\n").status == 204
    assert parsed(b"HTTP/1.1 101 Switching\r\n\r\n\x81\x00").body == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n"[:9] + b"20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: empty\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (1024 * 1024 + 1),
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    with pytest.raises(NotHttpError):
        parsed(data)


@given(st.binary(max_size=300))
def test_any_answer_is_a_response_or_not_http(data: bytes) -> None:
    for prefix in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        try:
            response = parsed(prefix + data)
        except NotHttpError:
            continue
        assert 0 <= response.status <= 999


@given(st.binary())
def test_any_head_is_parsed_or_not_http(head: bytes) -> None:
    try:
        parse_head(b"HTTP/1.1 200 OK\r\n" + head)
    except NotHttpError:
        return


@given(st.binary())
def test_any_body_has_a_json_value_or_none(body: bytes) -> None:
    json_value(body)
    assert json_value(b"[" * 100_000) is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", [b"abc", b"de"]),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", [b"abc"]),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\nde", NotHttpError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\nde", NotHttpError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nde", NotHttpError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nde", NotHttpError),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (2**21, b"x" * 2**21),
            [b"x" * MAX_HEAD_BYTES] * 32,
        ),
    ],
    ids=["chunks", "to the end", "cut", "a chunk that is cut", "no chunk", "a negative one", "a message of 2 MiB"],
)
def test_a_body_that_goes_on_is_read_in_pieces(data: bytes, expected: object) -> None:
    async def read() -> list[bytes]:
        reader = asyncio.StreamReader(limit=64 * 1024)
        reader.feed_data(data)
        reader.feed_eof()
        return [piece async for piece in body_pieces(reader, await read_head(reader))]

    if isinstance(expected, list):
        assert asyncio.run(read()) == expected
    else:
        with pytest.raises(NotHttpError):
            asyncio.run(read())
