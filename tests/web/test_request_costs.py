"""Requests are cheap before authentication: the tests count, rather than time, the parsing, decoding and reading."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tornado import httputil
from tornado.escape import parse_qs_bytes
from tornado.httputil import HTTPHeaders

from cocoa_tornado.rules.request_head import MAX_FIELD_LINES, MAX_HEAD_BYTES, MAX_QUERY_FIELDS, HeadScan
from cocoa_tornado.web.application import _FilteredRequest
from cocoa_tornado.web.publish_handler import PublishHandler
from cocoa_tornado.web.streams import HttpStream
from cocoa_tornado.web.token_handler import TokenHandler

from ..harness import Harness
from ..profiles import examples

CREDENTIALS = (("backend", "s3cret"),)
MAX_TOKEN_BYTES = 8192
ROUTES: Final = (
    "/ws",
    "/api/v1/auth/token",
    "/api/v1/audio/stream",
    "/api/v1/transcriptions",
    "/api/v1/health",
    "/metrics",
    "/nowhere",
)


@dataclass
class Work:
    """The gateway's work since the last reset."""

    scans: int = 0  # heads that were looked for
    parsed: int = 0  # heads that were parsed
    lines: int = 0  # of these
    head_bytes: int = 0  # of these
    query_fields: int = 0
    form_bytes: int = 0
    chunk_reads: int = 0  # lines before chunks
    body_bytes: int = 0  # given to a handler
    json_bytes: int = 0  # decoded


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    work = Work()
    parse, parse_qs, parse_body, loads = (
        HTTPHeaders.parse,
        parse_qs_bytes,
        httputil.parse_body_arguments,
        json.loads,
    )
    read_until, data_received, scanned = HttpStream.read_until, _FilteredRequest.data_received, HeadScan.__init__

    def count_parse(cls: type[HTTPHeaders], text: str, /, **kwargs: Any) -> HTTPHeaders:
        work.parsed += 1
        work.lines += text.count("\n")
        work.head_bytes += len(text)
        return parse(text, **kwargs)

    def count_qs(query: Any, **kwargs: Any) -> Any:
        work.query_fields += query.count("&") + 1
        return parse_qs(query, **kwargs)

    def count_form(content_type: str, body: bytes, *args: Any, **kwargs: Any) -> None:
        work.form_bytes += len(body) + len(content_type)
        parse_body(content_type, body, *args, **kwargs)

    def count_json(text: Any, **kwargs: Any) -> Any:
        work.json_bytes += len(text)
        return loads(text, **kwargs)

    def count_chunk(stream: HttpStream, *args: Any, **kwargs: Any) -> Any:
        future = read_until(stream, *args, **kwargs)
        work.chunk_reads += 1
        return future

    def count_body(request: _FilteredRequest, chunk: bytes) -> Any:
        work.body_bytes += len(chunk)
        return data_received(request, chunk)

    def count_scan(scan: HeadScan) -> None:
        work.scans += 1
        scanned(scan)

    monkeypatch.setattr(HTTPHeaders, "parse", classmethod(count_parse))
    monkeypatch.setattr(httputil, "parse_qs_bytes", count_qs)
    monkeypatch.setattr(httputil, "parse_body_arguments", count_form)
    monkeypatch.setattr(json, "loads", count_json)
    monkeypatch.setattr(HttpStream, "read_until", count_chunk)
    monkeypatch.setattr(_FilteredRequest, "data_received", count_body)
    monkeypatch.setattr(HeadScan, "__init__", count_scan)
    return work


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@contextlib.contextmanager
def running(runner: asyncio.Runner) -> Iterator[Harness]:
    harness = runner.run(Harness.start(api_credentials=CREDENTIALS, access_log=False))
    try:
        yield harness
    finally:
        runner.run(harness.stop())


async def send(gateway: Harness, pieces: list[bytes]) -> bytes:
    """All that comes back, though the gateway may close while it is still being sent to."""
    device = await gateway.dial()
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            device.writer.write(piece)
            await device.writer.drain()
            # The other side of the socket is served by this very loop.
            await asyncio.sleep(0)
        device.writer.write_eof()
    answer = await device.read_to_end()
    await device.end()
    return answer


# Requests of any kind

field_lines: st.SearchStrategy[bytes] = st.one_of(
    st.sampled_from(
        [
            b"a:",
            b" folded",
            b"\tfolded",
            b":",
            b"no colon",
            b"a\0b: c",
            b"Host: localhost",
            b"Content-Type: multipart/form-data; boundary=x",
            b"Content-Type: application/x-www-form-urlencoded",
            b"Content-Type: audio/wav",
            b"Content-Encoding: gzip",
            b"Expect: 100-continue",
            b"Connection: keep-alive",
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            b"Authorization: Bearer " + b"e" * 3000 + b".e30.x",
            b"If-None-Match: " + b'"' * 500,
            b"Cookie: " + b"a=b;" * 500,
            b"X-API-Key: backend",
        ]
    ),
    st.binary(min_size=1, max_size=40).map(lambda value: b"X: " + value),
)
fields = st.one_of(
    st.lists(field_lines, max_size=12),
    st.builds(lambda line, count: [line] * count, field_lines, st.sampled_from([99, 101, 5000])),
)
queries = st.one_of(
    st.just(b""),
    st.builds(
        lambda field, count: b"?" + field * count,
        st.sampled_from([b"a&", b"a=b&", b"token=x&", b"&"]),
        st.sampled_from([1, 30, 40, 3000]),
    ),
)
sized = st.builds(
    lambda size, unit: (unit * size)[:size],
    st.sampled_from([0, 1, 100, 70_000, 300_000]),
    st.sampled_from([b"x", b"a&", b'{"a":', b"--x\r\n", b"\r\n\r\n"]),
)
chunked = st.builds(
    lambda chunks, end: b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end,
    st.one_of(
        st.lists(st.binary(min_size=1, max_size=50), max_size=10), st.just([b"x"] * 5000), st.just([b"y" * 65_536] * 3)
    ),
    st.sampled_from([b"0\r\n\r\n", b"", b"zz\r\n", b"0\r\nA: b\r\n\r\n", b"1" * 200]),
)
bodies: st.SearchStrategy[tuple[bytes, bytes]] = st.one_of(
    st.just((b"", b"")),
    sized.map(lambda body: (b"Content-Length: %d\r\n" % len(body), body)),
    sized.map(lambda body: (b"Content-Length: %d\r\n" % (len(body) + 9), body)),
    chunked.map(lambda body: (b"Transfer-Encoding: chunked\r\n", body)),
)


@st.composite
def requests(draw: st.DrawFn) -> list[bytes]:
    """One request, right or wrong, in pieces."""
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"BREW"]))
    path = draw(st.sampled_from([route.encode() for route in ROUTES] + [b"http://a/ws", b"/" + b"x" * 20_000]))
    line_end = draw(st.sampled_from([b"\r\n", b"\n"]))
    framing, body = draw(bodies)
    lines = [b"Host: localhost", *draw(fields), *framing.split(b"\r\n")[:-1], b"", b""]
    start = b"%b %b HTTP/%b" % (method, path + draw(queries), draw(st.sampled_from([b"1.0", b"1.1"])))
    data = line_end.join([start, *lines]) + body
    size = draw(st.sampled_from([len(data) or 1, 65_536, 1000, 7]))
    # A drip of a whole body would only take long: what matters of it is the head.
    cut = [data[at : at + size] for at in range(0, min(len(data), 300 * size), size)]
    return [*cut, data[300 * size :]] if len(data) > 300 * size else cut


MULTIPART = (
    b"POST /nowhere HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n%b"
)
FORM = (b'--x\r\nContent-Disposition: form-data; name="a"; ' + b"b;" * 4980 + b"\r\n\r\nv\r\n") * 99 + b"--x--\r\n"


def test_whatever_a_stranger_sends_costs_no_more_than_one_small_head(runner: asyncio.Runner, work: Work) -> None:
    with running(runner) as gateway:

        @given(requests())
        @example([MULTIPART % (len(FORM), FORM)])
        @example([b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 16_000 + b"\r\n"])
        @example([b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 10_000])
        @example([b"GET /ws HTTP/1.0\r\nHost: x\r\n\r\nX: \n\r\n"])
        @example([b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 99 + b"Content-Length: 1\r\n\r\nx"])
        @examples(150)
        def check(pieces: list[bytes]) -> None:
            work.__init__()  # type: ignore[misc]
            answer = runner.run(send(gateway, pieces))
            size = sum(map(len, pieces))
            # Behind a request without a body, or at its end, another head is looked for.
            assert work.parsed <= 1 or work.parsed <= answer.count(b"HTTP/1.1 ")
            assert work.scans <= work.parsed + 1
            assert work.lines <= work.parsed * (MAX_FIELD_LINES + 3)
            assert work.head_bytes <= min(size, work.parsed * MAX_HEAD_BYTES)
            assert work.query_fields <= work.parsed * MAX_QUERY_FIELDS
            assert work.json_bytes <= work.parsed * MAX_TOKEN_BYTES
            assert (work.form_bytes, work.chunk_reads, work.body_bytes) == (0, 0, 0)

        check()


def test_what_a_known_sender_sends_costs_no_more_than_the_bound_of_its_body(runner: asyncio.Runner, work: Work) -> None:
    with running(runner) as gateway:
        bearer = f"Authorization: Bearer {gateway.token('doll')}\r\n".encode()
        known = {
            "/api/v1/auth/token": (b"X-API-Key: backend\r\nX-API-Secret: s3cret\r\n", TokenHandler.max_body_bytes),
            "/api/v1/transcriptions": (bearer, PublishHandler.max_body_bytes),
        }

        @given(st.sampled_from(sorted(known)), bodies, st.sampled_from([10**6, 1000]))
        @example("/api/v1/auth/token", (b"Transfer-Encoding: chunked\r\n", b""), 10**6)
        @example("/api/v1/transcriptions", (b"Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n" * 100_000), 10**6)
        @examples(60)
        def check(path: str, framed: tuple[bytes, bytes], size: int) -> None:
            framing, body = framed
            credentials, bound = known[path]
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
            data = head + credentials + framing + b"\r\n" + body
            work.__init__()  # type: ignore[misc]
            runner.run(send(gateway, [data[at : at + size] for at in range(0, len(data), size)]))
            # Tornado hands over 64 KiB at a time.
            assert work.body_bytes <= bound + 65_536
            # One more for the line that never comes.
            assert work.chunk_reads <= min(len(body) + 1, bound + 2 * 65_536)
            assert work.json_bytes <= bound + MAX_TOKEN_BYTES
            assert work.form_bytes == 0

        check()
