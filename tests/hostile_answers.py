"""What an HTTP server may answer that is broken, or means ill; and a server that answers it."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Final


def answer(body: bytes, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    """A well-formed answer with any body."""
    head = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join([*head, b"", body])


def without_length(*fields: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", *fields, b"", body])


HOSTILE: Final[dict[str, bytes]] = {
    "nothing": b"",
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x28",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "a status that is no number": b"HTTP/1.1 abc\r\n\r\n",
    "a status that is unknown": answer(b"", status=b"999 " + b"x" * 60_000),
    "a reason with controls": answer(b"", status=b"500 \x1b[31mred\xff\x85"),
    "5 MB of one header": without_length(b"X: " + b"a" * 5_000_000),
    "5 MB of headers": b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * 1_250_000 + b"\r\n",
    "a header without a colon": without_length(b"nonsense", b"Content-Length: 2", body=b"{}")[:40],
    "a folded header": without_length(b" folded", body=b""),
    "a NUL in a header": without_length(b"A: \0", b"Content-Length: 0"),
    "many interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000,
    "a protocol that nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "half a body": without_length(b"Content-Length: 100", body=b'{"keys":'),
    "two lengths": without_length(b"Content-Length: 5", b"Content-Length: 6", body=b"abcdef"),
    "a negative length": without_length(b"Content-Length: -5", body=b"abcdef"),
    "a huge length": without_length(b"Content-Length: 99999999999999999999999", body=b"abc"),
    "chunks that are none": without_length(b"Transfer-Encoding: chunked", body=b"zz\r\n"),
    "a huge chunk": without_length(b"Transfer-Encoding: chunked", body=b"ffffffffffffffff\r\n"),
    "a chunk without its end": without_length(b"Transfer-Encoding: chunked", body=b"5\r\nabcdefgh"),
    "a coding that is unknown": without_length(b"Transfer-Encoding: gzip", body=b"abc"),
    "a body that is gzip": answer(b"\x1f\x8b\x08\x00broken", b"Content-Encoding: gzip"),
    "a body of 2 MB": answer(b"x" * 2_000_000),
    "a body of 2 MB without a length": without_length(body=b"x" * 2_000_000),
    "no body": answer(b"", status=b"204 No Content"),
    "nothing new": answer(b"", status=b"304 Not Modified"),
    "a redirect": answer(b"", b"Location: http://127.0.0.1:1/", status=b"302 Found"),
    "a redirect to nowhere": answer(b"", b"Location: \xff\xfe://", status=b"308 Permanent Redirect"),
    "no JSON": answer(b"<html>"),
    "JSON in UTF-16, cut": answer('{"a":1}'.encode("utf-16")[:-1]),
    "bytes": answer(bytes(range(256))),
    "deep JSON": answer(b"[" * 200_000),
    "deep objects": answer(b'{"a":' * 50_000),
    "a number of many digits": answer(b'{"keys":' + b"9" * 100_000 + b"}"),
    "an array": answer(b"[]"),
    "lone surrogates": answer(b'{"keys":["\\ud800"],"access_token":"\\ud800"}'),
}


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


@contextlib.contextmanager
def answering(send: Callable[[Callable[[bytes], None]], None]) -> Iterator[str]:
    """A server that reads each request's head and then calls ``send`` with what writes to the client; its URL."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the client has had enough
                head = b""
                while b"\r\n\r\n" not in head and (data := self.request.recv(65_536)):
                    head += data
                send(self.request.sendall)

    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/path"
        finally:
            server.shutdown()
            thread.join()
