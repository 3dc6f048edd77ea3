"""The short way to read a request for an upgrade: what it recognizes, and that Tornado reads the very same."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders, HTTPServerRequest, parse_request_start_line

from cocoa_tornado.rules.request_head import MAX_HEAD_BYTES, MAX_QUERY_FIELDS, HeadScan, body_bytes
from cocoa_tornado.rules.targets import split_target
from cocoa_tornado.rules.upgrade_request import DEVICE_PATH, Recognized, recognize

from ..profiles import examples

FIELDS = [
    b"Host: gateway.example:8080",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
]
LINES = [
    *FIELDS,
    *(b"host:[::1]", b"Host: a@b", b"HOST: x:99999", b"Host:", b"Origin: https://app.example", b"Content-Length: 0"),
    *(b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"X-Forwarded-For: 192.0.2.1, 10.0.0.1"),
    *(b"Authorization: Bearer a.b.c", b"Sec-WebSocket-Protocol: bearer, a.b.c", b"X:\t a  b \t", b"X-: ", b"no colon"),
    *(b" folded", b"bad name: x", b"X: \x00", b"X: \x7f", b"X: \xe4", b"X: a\rb", b"X: a\nb", b": x", b"X'Y: z"),
]
TARGETS = [
    *(b"/ws", b"/ws?", b"/ws?token=a.b-c_d", b"/ws?token=a&token=b&&x", b"/ws?=y&a==b", b"/ws?a;b=c", b"/ws?a=%41"),
    *(b"/ws?a=b+c", b"/ws?a=b#c", b"/ws/", b"/WS", b"//ws", b"http://x/ws", b"/ws?a=\xe4", b"/ws?a b", b"*"),
]


def head(
    target: bytes = b"/ws", fields: list[bytes] = FIELDS, method: bytes = b"GET", version: bytes = b"1.1"
) -> bytes:
    return b"\r\n".join([b"%s %s HTTP/%s" % (method, target, version), *fields, b"", b""])


def read_by_tornado(received: bytes) -> Recognized:
    """The same by Tornado's parser, and what stands before it."""
    size = HeadScan().end(received)
    assert size is not None
    lines = received[:size].decode("latin-1")
    line, _, fields = lines.partition("\r\n")
    start_line, headers = parse_request_start_line(line), HTTPHeaders.parse(fields)
    assert (start_line.method, split_target(start_line.path).host) == ("GET", None)
    assert body_bytes(headers.get_list("Content-Length"), headers.get_list("Transfer-Encoding")) == 0
    request = HTTPServerRequest(start_line=start_line, headers=headers)
    assert request.path == DEVICE_PATH
    named = {name.lower(): value for name, value in headers.items()}
    found = recognize(received)
    assert found is not None
    return Recognized(found.request._replace(arguments=request.query_arguments, headers=named, host=request.host), size)


@given(
    st.sampled_from([*[b"/ws?token=a.b-c_d"] * 5, *TARGETS]),
    st.lists(st.sampled_from(LINES), max_size=4),
    st.integers(0, 5),
    st.sampled_from([b"GET"] * 5 + [b"get", b"POST", b"HEAD"]),
    st.sampled_from([b"1.1"] * 5 + [b"1.0", b"2.0", b"1.1 "]),
    st.sampled_from([b"", b"\x81\x80aaaa", b"\r\n\r\n", b"\xff" * 9]),
)
@example(b"/ws", [], 5, b"GET", b"1.1", b"\x81\x80aaaa")
@examples(1000)
def test_what_is_recognized_has_the_same_meaning_to_tornado(
    target: bytes, more: list[bytes], kept: int, method: bytes, version: bytes, frames: bytes
) -> None:
    received = head(target, [*FIELDS[:kept], *more], method, version) + frames
    found = recognize(received)
    if found is not None:
        assert found == read_by_tornado(received)
        assert found.request.version == "HTTP/1.1"


@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 10))
@examples(500)
def test_so_it_has_with_any_bytes_in_the_place_of_others(data: bytes, at: int, length: int) -> None:
    plain = head(b"/ws?token=a.b.c&cursors=1")
    received = plain[:at] + data + plain[at + length :]
    found = recognize(received)
    if found is not None:
        assert found == read_by_tornado(received)


@pytest.mark.parametrize("more", [
    [],
    [b"Authorization: Bearer a.b.c", b"User-Agent: ESP32 WebSocket Client", b"Origin: file://"],
    [b"Origin: https://app.example", b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"],
    [b"X-Forwarded-For: 192.0.2.1", b"X-Forwarded-Proto: https", b"X-Real-IP: 192.0.2.1"],
])  # fmt: skip
def test_the_requests_of_firmware_browsers_and_proxies_are_recognized(more: list[bytes]) -> None:
    found = recognize(head(b"/ws?token=a.b-c_d&cursors=1", [*FIELDS, *more]) + b"\x81\x80aaaa")
    assert found is not None
    assert found.request.arguments == {"token": [b"a.b-c_d"], "cursors": [b"1"]}
    assert (found.request.host, found.request.headers["sec-websocket-version"]) == ("gateway.example:8080", "13")


@pytest.mark.parametrize("received", [
    head()[:-1],
    head(b"/ws?a=%41"),
    head(b"/ws?" + b"&" * MAX_QUERY_FIELDS),
    head(b"http://x/ws"),
    head(version=b"1.0"),
    head(method=b"POST"),
    head(fields=FIELDS[1:]),
    head(fields=[*FIELDS, FIELDS[0]]),
    head(fields=[*FIELDS, b"Content-Length: 0"]),
    head(fields=[*FIELDS, b"Expect: 100-continue"]),
    head(fields=[*FIELDS, b"X: \xe4"]),
    head(fields=[*FIELDS, b" folded"]),
    head(fields=[*FIELDS, b"X: " + b"x" * MAX_HEAD_BYTES]),
    b"\r\n" + head(),
    head().replace(b"\r\n", b"\n"),
])  # fmt: skip
def test_what_needs_a_parser_is_not_recognized(received: bytes) -> None:
    assert recognize(received) is None
