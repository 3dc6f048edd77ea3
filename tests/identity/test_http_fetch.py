"""Reading a key URL over HTTP."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from cocoa_tornado.errors import KeyMaterialError
from cocoa_tornado.identity.http_fetch import HttpFetch, shown_url
from cocoa_tornado.identity.jwks_source import JwksSource

from ..hostile_answers import HOSTILE, answering
from .material import (
    DEADLINE_S,
    run,
)


class Document(RequestHandler):
    def get(self, what: str) -> None:
        if what == "large":
            self.write(b"x" * 5000)
        elif what == "redirect":
            self.redirect("/keys")
        elif what == "keys":
            self.write(b'{"keys":[]}')
        else:
            self.send_error(503)


class Silent(RequestHandler):
    def initialize(self, asked: asyncio.Event) -> None:
        self.asked = asked

    async def get(self) -> None:
        self.asked.set()
        await asyncio.Event().wait()


@asynccontextmanager
async def issuer_server(asked: asyncio.Event | None = None) -> AsyncIterator[str]:
    silent = ("/silent", Silent, {"asked": asked or asyncio.Event()})
    server = HTTPServer(Application([silent, ("/(.*)", Document)], log_function=lambda _: None))
    (socket,) = bind_sockets(0, "127.0.0.1")
    server.add_socket(socket)
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.stop()
        await server.close_all_connections()


def test_a_document_is_fetched_over_http() -> None:
    async def test() -> None:
        async with issuer_server() as base:
            assert await HttpFetch()(f"{base}/keys") == b'{"keys":[]}'

    run(test())


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/error?secret=1", "HTTP 503"),
        ("/redirect", "HTTP 302"),
        ("/large", "closed|long|large"),
        ("/silent", "Timeout"),
    ],
)
def test_a_failing_fetch_names_the_url_without_its_secrets(path: str, problem: str) -> None:
    async def test() -> None:
        async with issuer_server() as base:
            url = base.replace("//", "//user:hidden@") + path
            with pytest.raises(KeyMaterialError, match=problem) as caught:
                await HttpFetch(timeout_s=0.2, max_bytes=1000)(url)
            assert str(caught.value).startswith(f"{base}{path.partition('?')[0]}: ")
            assert "hidden" not in str(caught.value)

    run(test())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://[::1", "http://host:port/", "http:///"])
def test_a_url_without_an_answer_is_a_key_material_error(url: str) -> None:
    with pytest.raises(KeyMaterialError):
        run(HttpFetch(timeout_s=0.5)(url))  # type: ignore[arg-type]  # it raises, so that no bytes come back


def test_a_fetch_that_is_cancelled_leaves_no_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        asked = asyncio.Event()
        async with issuer_server(asked) as base:
            fetching = asyncio.create_task(HttpFetch()(f"{base}/silent"))
            await asked.wait()
            fetching.cancel()
            await asyncio.wait({fetching})
            assert fetching.cancelled()

    run(test())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.logs("cocoa.identity", "^jwks unavailable$")
def test_any_response_of_a_key_server_costs_one_short_line(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(url: str) -> None:
        source = JwksSource(url, HttpFetch(timeout_s=2.0), lambda: None)
        for _ in range(2):
            await source.refresh()
        assert not source.keys
        assert source.problem.isprintable()
        assert len(source.problem) < 400

    with answering(lambda write: write(HOSTILE[name])) as url:
        asyncio.run(asyncio.wait_for(test(url), 2 * DEADLINE_S))
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (line.getMessage(), line.exc_info) == ("jwks unavailable", None)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"])
def test_a_key_server_that_drips_is_given_up_in_time(start: bytes) -> None:
    given_up = threading.Event()

    def drip(write: Callable[[bytes], None]) -> None:
        write(start)
        while not given_up.wait(0.02):
            write(b"x")

    with answering(drip) as url, pytest.raises(KeyMaterialError, match="Timeout"):
        run(HttpFetch(timeout_s=0.3)(url))  # type: ignore[arg-type]  # it raises, so that no bytes come back
    given_up.set()


def test_a_url_is_shown_without_user_query_and_fragment() -> None:
    assert shown_url("https://user:pw@issuer.example:8443/jwks?key=1#x") == "https://issuer.example:8443/jwks"
