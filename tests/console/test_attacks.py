"""What pages of others read of a gateway on their visitor's machine, in a real browser: nothing, however they try.

Each attack also runs where it has to succeed, so that an attack that no longer works does not pass for a defence.
Attacks of another user of the machine: ``tests/identity/test_devkey.py`` (the key), ``tests/cli/test_listeners.py``
(a stranger's program on the port), ``tests/workers/test_folder.py`` (the workers' sockets), ``tests/mailboxes`` and
``tests/admin/test_blocks.py`` (the files of messages and of blocked devices).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from cocoa_tornado.identity.devkey import development_secret
from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import AdminTokenRequest, admin_claims
from testing.browser import CHROMIUM, PageServer
from testing.chromium import Chromium, Page, chromium
from testing.tcp_proxy import TcpProxy

from ..admin.conftest import StartAdmin
from ..harness import Harness

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.gen_test(timeout=180),
    pytest.mark.logs("cocoa.service", "DEVELOPMENT KEY IN USE", optional=True),
    pytest.mark.logs("cocoa.http", "host not allowed", optional=True),
]

EVIL: Final = "evil.test"
FLAGS: Final = (f"--host-resolver-rules=MAP {EVIL} 127.0.0.1", "--disable-popup-blocking")
MARKS: Final = {
    "/": "<title>cocoa console",
    "/console/js/main.js": "import {connection}",
    "/metrics": "cocoa_connections",
    "/api/v1/ready": '"broker"',
    "/api/v1/health": "healthy",
    "/api/v1/openapi.json": '"openapi"',
}
"""Everything that needs no token, and what it is known by."""
OPERATORS: Final = ("overview", "devices", "events", "quarantine", "messages/m1")

# Each way returns all that the page could read, or how that failed.
WAYS: Final = """
(() => {
const settled = (begin) => new Promise((resolve) => begin((how) => {
  try {
    resolve(String(how()));
  } catch (error) {
    resolve(`failed: ${error.name}`);
  }
}));
const insert = (name, set) => settled((done) => {
  const element = document.createElement(name);
  element.onload = () => done(() => `loaded ${element.naturalWidth ?? ""}`);
  element.onerror = () => done(() => "failed: error");
  set(element);
  document.body.append(element);
});
const fetched = (url, options) => fetch(url, {cache: "no-store", ...options}).then(
  async (answer) => `${answer.type} ${answer.status} ${[...answer.headers].join()} ${await answer.text()}`,
  (error) => `failed: ${error.name}`,
);
const html = (view) => view.document.documentElement.outerHTML;
globalThis.ways = {
  fetch: (url) => fetched(url),
  xhr: (url) => settled((done) => {
    const request = new XMLHttpRequest();
    request.onloadend = () => done(() => request.responseText || "failed: empty");
    request.open("GET", url);
    request.send();
  }),
  frame: (url) => settled((done) => {
    const frame = document.createElement("iframe");
    frame.onload = () => done(() => html(frame.contentWindow));
    frame.src = url;
    document.body.append(frame);
  }),
  window: (url) => settled((done) => {
    const view = open(url);
    const look = () => {
      try {
        if (view.closed) done(() => "failed: closed");
        else if (view.location.href === "about:blank" || view.document.readyState !== "complete") setTimeout(look, 20);
        else done(() => html(view));
      } catch (error) {
        done(() => { throw error; });
      }
    };
    look();
  }),
  opaque: (url) => fetched(url, {mode: "no-cors"}),
  cookies: (url) => fetched(url, {credentials: "include"}),
  token: (url) => fetched(url, {headers: {Authorization: "Bearer x"}}),
  script: (url) => insert("script", (element) => { element.src = url; }),
  module: (url) => insert("script", (element) => Object.assign(element, {type: "module", src: url})),
  shared: (url) => insert("script", (element) => Object.assign(element, {crossOrigin: "anonymous", src: url})),
  image: (url) => insert("img", (element) => { element.src = url; }),
  style: (url) => insert("link", (element) => Object.assign(element, {rel: "stylesheet", href: url})),
  events: (url) => settled((done) => {
    const source = new EventSource(url);
    source.onmessage = (event) => done(() => event.data);
    source.onerror = () => { source.close(); done(() => "failed: error"); };
  }),
  worker: (url) => settled((done) => {
    try {
      const worker = new Worker(url);
      worker.onerror = () => done(() => "failed: error");
    } catch (error) {
      done(() => { throw error; });
    }
  }),
  form: (url) => settled((done) => {
    const frame = Object.assign(document.createElement("iframe"), {name: `form-${Math.random()}`});
    const form = Object.assign(document.createElement("form"), {action: url, method: "post", target: frame.name});
    document.body.append(frame, form);
    frame.onload = () => done(() => html(frame.contentWindow));
    form.enctype = "text/plain";
    form.submit();
  }),
};
})()
"""
SOCKETS: Final = """
Promise.all([[], ["bearer", "x"], ["bearer"]].map((protocols) => new Promise((resolve) => {
  const socket = new WebSocket(URL_OF_WS, protocols.length === 1 ? [] : protocols);
  socket.onopen = () => resolve("open");
  socket.onmessage = (event) => resolve(event.data);
  socket.onclose = (event) => resolve(`${event.code} ${event.reason}`);
})))
"""
BY_REBINDING: Final = ("fetch", "xhr", "frame", "window")


async def attack(page: Page, base: str, targets: list[str], ways: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """What each way reads of each target.

    :param base: before the target; "" for the page's own origin
    """
    plan = json.dumps([[way, base + target] for target in targets for way in ways])
    found = await page.evaluate(f"{WAYS}; Promise.all({plan}.map(([way, url]) => ways[way](url)))")
    return dict(zip([(way, target) for target in targets for way in ways], found, strict=True))


@contextlib.asynccontextmanager
async def rebound(browser: Chromium, port: int) -> AsyncIterator[Page]:
    """A page of the attacker's, whose name and port from now on lead to this port of the gateway."""
    async with PageServer("").serving() as server:
        name_server = TcpProxy(f"127.0.0.1:{server.port}")
        await name_server.start()
        try:
            page = await browser.page(f"http://{EVIL}:{name_server.address.rpartition(':')[2]}/")
            assert await page.evaluate("document.scripts.length") == 1
            name_server.target = f"127.0.0.1:{port}"
            # The attacker's server ends, and with it the connection that the browser keeps for later.
            await name_server.stop()
            await name_server.start()
            yield page
        finally:
            await name_server.close()


async def development(start_admin: StartAdmin, folder: Path, **settings: Any) -> Harness:
    """A gateway with the development key."""
    return await start_admin(jwt_secret="", admin_jwt_secret="", data_dir=folder, **settings)


async def test_a_page_whose_name_is_made_to_lead_to_the_gateway_reads_nothing(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    """DNS rebinding, on both listeners."""
    targets = [*MARKS, *(f"/api/v1/admin/{name}" for name in OPERATORS)]
    one = await development(start_admin, tmp_path)
    two = await development(start_admin, tmp_path, admin_port=0)
    listed = await start_admin(allowed_hosts=("gateway.example",))
    defenceless = await development(start_admin, tmp_path, allowed_hosts=("*",))
    async with chromium(tmp_path / "profile", *FLAGS) as browser:
        for port in (one.port, two.port, two.gateway.parts.listeners.admin_port, listed.port):
            async with rebound(browser, port) as page:
                for (way, target), text in (await attack(page, "", targets, BY_REBINDING)).items():
                    assert "Host not allowed" in text or "Not Found" in text, (way, target, text)
                    assert MARKS.get(target, "devices") not in text, (way, target, text)
                address = "location.origin.replace('http', 'ws') + '/ws'"
                assert await page.evaluate(SOCKETS.replace("URL_OF_WS", address)) == ["1006 "] * 3
        async with rebound(browser, defenceless.port) as page:
            found = await attack(page, "", [*MARKS], BY_REBINDING)
            for target, mark in MARKS.items():
                assert mark in found["fetch", target]
                assert mark in found["xhr", target]
            assert MARKS["/metrics"] in found["frame", "/metrics"]
            assert MARKS["/metrics"] in found["window", "/metrics"]


DEVICES: Final = ("/ws", "/api/v1/auth/token", "/api/v1/transcriptions", "/api/v1/audio/stream")
NOTHING: Final = ("failed: ", "loaded", "opaque 0  ")
"""How the answer of a way begins that has read nothing; none of them goes on."""


async def test_a_page_of_another_port_of_this_machine_reads_nothing_and_changes_nothing(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    one = await development(start_admin, tmp_path)
    two = await development(start_admin, tmp_path, admin_port=0)
    await one.publish("doll", "waiting")
    targets = [*MARKS, *DEVICES, *(f"/api/v1/admin/{name}" for name in OPERATORS)]
    async with chromium(tmp_path / "profile", *FLAGS) as browser, PageServer("").serving() as server:
        # Of the gateway's own host name, too: only the port differs.
        for host, ports in (
            ("localhost", [one.port]),
            ("127.0.0.1", [one.port, two.gateway.parts.listeners.admin_port]),
        ):
            page = await browser.page(f"http://{host}:{server.port}/")
            assert "const report" in (await attack(page, "", ["/"], BY_REBINDING))["window", "/"]
            ways = tuple((await page.evaluate("Object.keys(ways).join()")).split(","))
            for port in ports:
                for (way, target), text in (await attack(page, f"http://127.0.0.1:{port}", targets, ways)).items():
                    assert text.startswith(NOTHING), (way, target, text)
                    assert len(text) < 30, (way, target, text)
            for port in (one.port, two.port):
                ends = await page.evaluate(SOCKETS.replace("URL_OF_WS", json.dumps(f"ws://127.0.0.1:{port}/ws")))
                assert ends == ["1006 "] * 3
    for gateway in (one, two):
        assert not gateway.gateway.broker.counters.quarantined
        assert gateway.gateway.counters.device_messages == 0
    assert one.gateway.counters.routed == 0


async def test_a_page_that_opens_the_console_has_no_hold_of_it(start_admin: StartAdmin, tmp_path: Path) -> None:
    gateway = await development(start_admin, tmp_path)
    signer = Signer.from_secret(development_secret(tmp_path).secret)
    token = signer.sign(admin_claims(AdminTokenRequest("ann"), time.time()))
    console = f"http://127.0.0.1:{gateway.port}/"
    async with chromium(tmp_path / "profile", *FLAGS) as browser, PageServer("").serving() as server:
        page = await browser.page(f"http://127.0.0.1:{server.port}/")
        await page.evaluate(f"globalThis.view = open({json.dumps(f'{console}#token={token}')}, 'console'); 0")
        opened = await browser.opened_tab(console)
        await opened.until_text("Connected devices")
        # The page's handle is dead, and so is the name that it has given.
        await page.until("view.closed")
        assert await opened.evaluate("[opener, name, parent === window]") == [None, "", True]
        held = "(() => { try { return String(view.document); } catch (error) { return error.name; } })()"
        assert await page.evaluate(held) in ("SecurityError", "null", "undefined")
        await page.evaluate("view.postMessage('x', '*'); view.location = 'about:blank'; 0")
        assert await opened.evaluate("location.href") == f"{console}#/"
        # Nor does a token of the page sign in.
        await opened.evaluate("location.hash = '#token=eyJhbGciOiJub25lIn0.eyJzdWIiOiJldmUifQ.'")
        await opened.until_text("does not accept this token")
