"""A token endpoint as an identity provider has it, for the client credentials grant."""

from __future__ import annotations

import contextlib
import http.server
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any


class TokenEndpoint(http.server.ThreadingHTTPServer):
    """Sends configured answers, and records the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.answer = 200, b'{"access_token":"token-1","expires_in":100}'
        self.location = ""
        self.requests: list[tuple[str, dict[str, list[str]]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/token"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: TokenEndpoint

    def do_GET(self) -> None:
        """Record a GET, which only a client sends that follows a redirect of a POST."""
        self.server.requests.append((self.headers["Authorization"], {}))
        self.send_response(404)
        self.end_headers()

    def do_POST(self) -> None:
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.requests.append((self.headers["Authorization"], form))
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def serving() -> Iterator[TokenEndpoint]:
    with TokenEndpoint() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
