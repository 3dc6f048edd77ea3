"""The device of examples/browser in a real Chromium, with a recording for a microphone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from testing.browser import CHROMIUM

from .programs import EXAMPLES, Running, start
from .test_devices import SPEECH, hears_each_once, site

pytestmark = [
    pytest.mark.slow,
    pytest.mark.gen_test(timeout=120),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]

# What a person does: press Connect and, if it is wanted, Speak. The cursor is one of another mailbox.
PERSON = """
<script>
addEventListener("load", () => {
  localStorage.setItem("cursor of doll", "AAAAAAAAAAeYure9PRtfD2Qx");
  const form = document.querySelector("form"), {speak} = form.elements;
  form.requestSubmit();
  const waiting = setInterval(() => {
    if (location.search === "?speak" && !speak.disabled) {
      clearInterval(waiting);
      speak.click();
    }
  }, 50);
});
</script>
"""


class Page(RequestHandler):
    """A file of the example, with a person in it."""

    def get(self, name: str) -> None:
        text = (EXAMPLES / "browser" / (name or "index.html")).read_text()
        self.set_header("Content-Type", "text/javascript" if name else "text/html")
        self.write(text if name else text + PERSON)


class Nothing(RequestHandler):
    def get(self) -> None:
        self.set_status(204)


class Console(Running):
    """The lines of a page's console."""

    def _line(self, line: str) -> None:
        if found := re.search(r'CONSOLE[^"]*"(.*)", source: ', line):
            super()._line(found.group(1))


@contextlib.asynccontextmanager
async def browsing(token: str, ws_url: str, profile: Path, what: str = "") -> AsyncIterator[Running]:
    listener, port = bind_unused_port()
    server = HTTPServer(Application([(r"/(device.js|microphone.js|)", Page), (r"/favicon.ico", Nothing)]))
    server.add_socket(listener)
    assert CHROMIUM is not None
    program = await start(
        [
            CHROMIUM,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"),
            *("--enable-logging=stderr", "--autoplay-policy=no-user-gesture-required"),
            *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
            f"--use-file-for-fake-audio-capture={SPEECH}%noloop",
            f"http://127.0.0.1:{port}/?{what}#url={ws_url}&token={token}&scale=0.005",
        ],
        {},
        Console,
    )
    try:
        yield program
    finally:
        await program.stop()
        server.stop()


async def test_a_page_gets_each_message_once_whatever_ends_its_connections(tmp_path: Path) -> None:
    async with site(allowed_origins=("127.0.0.1",)) as gateway:
        for number in range(4):
            await gateway.publish("doll", f"kept {number}")
        rival = await gateway.connect("doll")
        async with browsing(gateway.token(), gateway.ws_url, tmp_path) as page:
            await hears_each_once(page, gateway, rival)


async def test_a_page_hears_what_is_said_into_its_microphone(tmp_path: Path) -> None:
    async with (
        site(speech="pocketsphinx://", allowed_origins=("127.0.0.1",)) as gateway,
        browsing(gateway.token(), gateway.ws_url, tmp_path, "speak") as page,
    ):
        assert {"two", "nine", "three"} & set((await page.prints("heard", 1))[0].split())
