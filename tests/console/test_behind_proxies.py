"""The console behind real proxies: who reads what through them, and that all of it works below a path."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner
from tornado.ioloop import IOLoop

from testing.browser import CHROMIUM
from testing.chromium import Page, by_text, chromium
from testing.proxies import HAPROXY, NGINX, Places, Program, Proxy
from testing.raw_device import RawDevice

from ..admin.conftest import StartAdmin, admin_token
from ..admin.operator import main
from ..harness import SECRET, Harness
from ..shared_folder import SHARED_FOLDER

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.skipif(bool(NGINX.why_not() or HAPROXY.why_not()), reason="nginx or HAProxy is not installed"),
    pytest.mark.gen_test(timeout=180),
]

OPERATIONS: Final = Path(__file__).parents[2] / "docs" / "operations.rst"
CONSOLE: Final = OPERATIONS.with_name("console.rst")
EVIL: Final = "evil.test"


def documented(page: Path, first: str) -> str:
    """The block of a page of the documentation that begins with this line."""
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"(?m)^( +){re.escape(first)}.*(?:\n(?:\1.*)?)*", text)
    assert found is not None
    return found[0]


# What the documentation names is used as it stands there, with other ports. Beside it: what people write without it.
VARIANTS: Final = """
        location /simple/   { proxy_pass http://GATEWAY/; proxy_http_version 1.1; proxy_set_header Host $http_host;
                              proxy_set_header Upgrade $http_upgrade;
                              proxy_set_header Connection $gateway_connection; }
        location /kept/     { proxy_pass http://GATEWAY/; proxy_set_header Host $http_host; }
        location /bare/     { proxy_pass http://GATEWAY/; }
        location /reported/ { proxy_pass http://GATEWAY/; proxy_set_header X-Forwarded-Host $http_host; }
    }
"""


def _nginx(places: Places) -> list[str]:
    gateway = f"127.0.0.1:{places.gateway}"
    below = documented(OPERATIONS, "map $http_upgrade $gateway_connection {").rstrip()
    assert below.endswith("}\n    }")
    below = below[: -len("}")] + VARIANTS.replace("GATEWAY", gateway)
    named = documented(CONSOLE, "server { listen 80 default_server;").replace("gateway.example", "localhost")
    text = f"{below.replace('listen 80;', f'listen 127.0.0.1:{places.plain};')}\n" + re.sub(
        r"listen 80\b", f"listen 127.0.0.1:{places.secure}", named
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{kind}_temp_path {places.folder}/{kind};" for kind in kinds)
    (places.folder / "nginx.conf").write_text(
        f"""daemon off; master_process off; pid {places.folder}/nginx.pid; error_log {places.folder}/error.log;
        events {{ worker_connections 256; }}
        http {{ {temporary} access_log off; {text.replace("127.0.0.1:8080", gateway)} }}"""
    )
    return ["nginx", "-p", str(places.folder), "-c", str(places.folder / "nginx.conf")]


def _haproxy(places: Places) -> list[str]:
    blocks = documented(OPERATIONS, "frontend web").replace("bind :80", f"bind 127.0.0.1:{places.plain}")
    (places.folder / "haproxy.cfg").write_text(
        f"""defaults
    mode http
    timeout connect 5s
    timeout client 1m
    timeout server 1m
{blocks.replace("127.0.0.1:8080", f"127.0.0.1:{places.gateway}")}
frontend rewriting
    bind 127.0.0.1:{places.secure}
    http-request set-header Host 127.0.0.1 unless {{ path_beg /kept/ }}
    default_backend either
backend either
    http-request replace-path /[a-z]*(/.*) \\1
    server gateway1 127.0.0.1:{places.gateway}
"""
    )
    return ["haproxy", "-db", "-f", str(places.folder / "haproxy.cfg")]


class Proxies:
    """nginx and HAProxy in front of one gateway."""

    def __init__(self, request: pytest.FixtureRequest, gateway: Harness) -> None:
        folder = Path(tempfile.mkdtemp(prefix="proxy-", dir=request.config.stash[SHARED_FOLDER]))
        self.gateway = gateway
        self.nginx = Proxy(Program("nginx", _nginx), folder / "nginx", gateway.port)
        self.haproxy = Proxy(Program("haproxy", _haproxy), folder / "haproxy", gateway.port)

    def start(self) -> None:
        self.nginx.start()
        self.haproxy.start()

    def close(self) -> None:
        self.nginx.close()
        self.haproxy.close()


@pytest.fixture
def proxies(request: pytest.FixtureRequest, io_loop: IOLoop, start_admin: StartAdmin) -> Iterator[Proxies]:
    gateway = io_loop.run_sync(
        lambda: start_admin(
            allowed_hosts=("gateway.example",),
            trusted_proxies=(ip_network("127.0.0.1"),),
            duplicate_challenge_s=0.3,
            jwt_leeway_s=0.0,
        )
    )
    assert isinstance(gateway, Harness)
    both = Proxies(request, gateway)
    try:
        both.start()
        yield both
    finally:
        both.close()


async def status(page: Page, path: str) -> int:
    """Of the metrics, for a script of the page's own origin. The gateway's are there if and only if it is 200."""
    code, text = await page.evaluate(
        f"fetch({json.dumps(path)}, {{cache: 'no-store'}}).then(async (found) => [found.status, await found.text()])"
    )
    assert ("cocoa_connections" in text) == (code == 200)
    assert isinstance(code, int)
    return code


@pytest.mark.logs("cocoa.http", "host not allowed")
async def test_a_name_that_leads_to_a_proxy_is_judged_unless_the_proxy_hides_it(
    proxies: Proxies, tmp_path: Path
) -> None:
    async with chromium(tmp_path / "profile", f"--host-resolver-rules=MAP {EVIL} 127.0.0.1") as browser:
        for port, path, evil in (
            (proxies.nginx.plain_port, "/kept/metrics", 421),
            (proxies.nginx.plain_port, "/reported/metrics", 421),
            (proxies.nginx.plain_port, "/gateway/metrics", 421),
            (proxies.nginx.plain_port, "/bare/metrics", 200),  # as the documentation says
            (proxies.nginx.secure_port, "/metrics", 421),  # nginx itself
            (proxies.haproxy.plain_port, "/gateway/metrics", 421),
            (proxies.haproxy.secure_port, "/kept/metrics", 421),
            (proxies.haproxy.secure_port, "/rewritten/metrics", 200),
        ):
            page = await browser.page(f"http://{EVIL}:{port}{path}")
            assert await status(page, path) == evil, (port, path)
            forged = f"fetch({json.dumps(path)}, {{headers: {{'X-Forwarded-Host': 'localhost'}}}})"
            assert await page.evaluate(f"{forged}.then((found) => found.status)") == evil, (port, path)
            await page.go(f"http://localhost:{port}{path}")
            assert await status(page, path) == 200, (port, path)


async def test_the_console_works_below_a_path(proxies: Proxies, tmp_path: Path) -> None:
    gateway = proxies.gateway
    await gateway.connect("a/b é")
    async with chromium(tmp_path / "profile") as browser:
        for number, base in enumerate(
            (
                f"localhost:{proxies.nginx.plain_port}/gateway",
                f"localhost:{proxies.nginx.plain_port}/simple",
                f"localhost:{proxies.haproxy.plain_port}/gateway",
            )
        ):
            # Without the slash at its end the proxy redirects it, and the browser keeps the fragment.
            page = await browser.page(f"http://{base}#token={admin_token()}")
            await page.until_text("Connected devices")
            assert await page.evaluate("location.href") == f"http://{base}/#/"
            await page.until("document.querySelector('.stat strong')?.textContent === '1'")
            await page.evaluate("location.hash = '#/try'")
            await page.fill("[name=device]", f"doll-{number}")
            await page.press("Enter")
            await page.until("[...document.querySelectorAll('.pill')].some((each) => each.textContent === 'connected')")
            tail = await browser.page(f"http://{base}/#token={admin_token()}")
            await tail.evaluate("location.hash = '#/tail'")
            await tail.until_text("Live")
            await page.fill("[name=text]", f"hello {number}")
            await page.press("Enter")
            await page.until(f"document.querySelector('.journal').innerText.includes('hello {number}')")
            await tail.until_text(f"hello {number}")
            await page.click(by_text("button", "Disconnect"))
            await page.until(
                "[...document.querySelectorAll('.pill')].every((each) => each.textContent !== 'connected')"
            )
            assert (page.faults, tail.faults) == ([], [])


async def test_the_command_line_works_below_a_path(proxies: Proxies) -> None:
    gateway = proxies.gateway
    await gateway.connect("a/b é")
    for port in (proxies.nginx.plain_port, proxies.haproxy.plain_port):
        base = f"localhost:{port}/gateway"
        env = {"COCOA_ADMIN_TOKEN": admin_token(), "COCOA_JWT_SECRET": SECRET, "COCOA_ADMIN_URL": f"http://{base}"}
        for command in (["admin", "device", "a/b é"], ["admin", "devices", "--url", f"http://{base}/"]):
            result = await asyncio.to_thread(CliRunner().invoke, main, command, env=env)
            assert (result.exit_code, "a/b é" in result.stdout) == (0, True), result.output
        probe = ["probe-device", f"ws://{base}/ws", "--format", "json"]
        checks = json.loads((await asyncio.to_thread(CliRunner().invoke, main, probe, env=env)).stdout)["checks"]
        assert [check for check in checks if check["status"] == "failed"] == []
        assert len(checks) > 30
    # As the documentation says: the shorter proxy_pass of nginx decodes what an id in a path needs encoded.
    simple = {
        "COCOA_ADMIN_TOKEN": admin_token(),
        "COCOA_ADMIN_URL": f"http://localhost:{proxies.nginx.plain_port}/simple",
    }
    for command in (["admin", "devices"], ["admin", "device", "a/b é"]):
        assert (await asyncio.to_thread(CliRunner().invoke, main, command, env=simple)).exit_code == 0
    through = await RawDevice.connect(proxies.nginx.plain_port)
    bearer = {"Authorization": f"Bearer {admin_token()}"}
    encoded = await through.request("GET", "/simple/api/v1/admin/devices/a%2Fb%20%C3%A9", bearer)
    await through.end()
    assert encoded.status == 404


async def test_with_a_port_of_its_own_below_a_path_the_devices_port_has_no_path(
    request: pytest.FixtureRequest, start_admin: StartAdmin, tmp_path: Path
) -> None:
    gateway = await start_admin(admin_port=0)
    folder = Path(tempfile.mkdtemp(prefix="proxy-", dir=request.config.stash[SHARED_FOLDER]))
    proxy = Proxy(Program("nginx", _nginx), folder, gateway.gateway.parts.listeners.admin_port)
    try:
        proxy.start()
        async with chromium(tmp_path / "profile") as browser:
            page = await browser.page(f"http://127.0.0.1:{proxy.plain_port}/gateway/#token={admin_token()}")
            await page.until_text("Connected devices")
            await page.evaluate("location.hash = '#/try'")
            await page.fill("[name=device]", "doll")
            await page.press("Enter")
            await page.until("[...document.querySelectorAll('.pill')].some((each) => each.textContent === 'connected')")
            assert page.faults == []
    finally:
        proxy.close()
