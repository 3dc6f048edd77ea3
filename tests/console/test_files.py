"""The console's files over HTTP: where they are served, with which headers, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from cocoa_tornado.console.files import STATIC, read_files
from cocoa_tornado.console.policy import content_security_policy
from cocoa_tornado.rules.labels import CLOSE_CODES, LABELS
from testing.raw_device import RawDevice, Response

from ..admin.conftest import ADMIN_SECRET, StartAdmin, admin_token
from ..harness import Harness

pytestmark = pytest.mark.gen_test(timeout=60)

ROOT = Path(__file__).parents[2]
PATHS = ["/", *(f"/console/{name}" for name in read_files() if name != "index.html")]
NO_PATHS = [
    *("/console", "/console/", "/console/index.html", "/console/nothing.js", "/console/js", "/console/js/"),
    *("/console/../../service.py", "/console/..%2f..%2fservice.py", "/console/%2e%2e/files.py", "/console/%00"),
    *("/console//etc/passwd", "/console/js/../css/base.css", "/console/%ff", "/console/css\\base.css", "/index.html"),
]


async def get(port: int, target: str, headers: dict[str, str] | None = None, method: str = "GET") -> Response:
    device = await RawDevice.connect(port)
    try:
        return await device.request(method, target, headers or {})
    finally:
        await device.end()


async def test_every_file_is_served_with_its_type_and_what_a_browser_may_do_with_it(gateway: Harness) -> None:
    for path in PATHS:
        response = await get(gateway.port, path)
        assert response.status == 200, path
        assert (
            response.body == (STATIC / (path.removeprefix("/console/") if path != "/" else "index.html")).read_bytes()
        )
        headers = response.headers
        assert headers["content-type"].split(";")[0] in {"text/html", "text/css", "text/javascript", "image/svg+xml"}
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["permissions-policy"].startswith("microphone=(self), camera=()")
        assert "set-cookie" not in headers
        assert not [name for name in headers if name.startswith("access-control")]
        policy = headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"} <= set(policy)
        assert {"frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} <= set(policy)
        assert "unsafe" not in headers["content-security-policy"]


async def test_a_file_that_the_browser_has_is_not_sent_again(gateway: Harness) -> None:
    for path in ("/", "/console/js/main.js"):
        first = await get(gateway.port, path)
        assert first.headers["cache-control"] == "no-cache"
        etag = first.headers["etag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}'):
            again = await get(gateway.port, path, {"If-None-Match": known})
            assert (again.status, again.body) == (304, b"")
            assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
        assert (await get(gateway.port, path, {"If-None-Match": '"other"'})).status == 200


async def test_no_other_method_than_get_and_head_is_answered(gateway: Harness) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert (await get(gateway.port, "/", method=method)).status == 405


async def assert_unknown(port: int, path: str) -> None:
    """The answer does not differ from that of a route that never existed."""
    known, unknown = await get(port, path), await get(port, "/nothing")
    assert (known.status, known.body) == (404, b'{"message":"Not Found"}'), path
    assert set(known.headers) == set(unknown.headers)


async def test_no_other_path_leads_to_a_file(gateway: Harness) -> None:
    for path in NO_PATHS:
        await assert_unknown(gateway.port, path)


async def test_without_the_admin_api_there_is_no_console(start_admin: StartAdmin) -> None:
    gateway = await start_admin(admin_jwt_secret="")
    for path in PATHS:
        await assert_unknown(gateway.port, path)


async def test_the_console_can_be_turned_off_and_leaves_the_admin_api_as_it_is(start_admin: StartAdmin) -> None:
    gateway = await start_admin(console="off")
    for path in PATHS:
        await assert_unknown(gateway.port, path)
    bearer = {"Authorization": f"Bearer {admin_token()}"}
    assert (await get(gateway.port, "/api/v1/admin/overview", bearer)).status == 200


async def test_a_reload_that_enables_the_admin_api_enables_the_console(start_admin: StartAdmin) -> None:
    gateway = await start_admin(admin_jwt_secret="")
    settings = gateway.gateway.settings
    await gateway.gateway.reload(type(settings)(**{**vars(settings), "admin_jwt_secret": ADMIN_SECRET}))
    assert (await get(gateway.port, "/")).status == 200


async def test_with_a_port_of_its_own_it_is_there_only_and_may_connect_to_the_devices_port(
    start_admin: StartAdmin,
) -> None:
    gateway = await start_admin(admin_port=0)
    own = gateway.gateway.parts.listeners.admin_port
    for path in PATHS:
        await assert_unknown(gateway.port, path)
        assert (await get(own, path)).status == 200
    page = await get(own, "/", {"Host": f"gateway.example:{own}"})
    policy = page.headers["content-security-policy"]
    assert policy.endswith(f"connect-src 'self' ws://gateway.example:{gateway.port}")
    bearer = {"Authorization": f"Bearer {admin_token()}"}
    overview = await get(own, "/api/v1/admin/overview", bearer)
    assert f'"device_port":{gateway.port}'.encode() in overview.body


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1", "[::1]:9", "x;script-src *", "a b", ""]
)
def test_no_host_adds_more_than_itself_to_the_policy(host: str) -> None:
    policy = content_security_policy(host, tls=True, device_port=8080)
    assert policy.count(";") == content_security_policy("gateway", tls=True, device_port=8080).count(";")
    assert re.fullmatch(r".*connect-src 'self'( wss://[A-Za-z0-9.\[\]:]+:8080)?", policy)


async def test_a_page_of_another_site_reads_nothing_whatever_host_it_names(start_admin: StartAdmin) -> None:
    """DNS rebinding: a stranger's host name that leads here. It gets the empty page, and no data without a token."""
    gateway = await start_admin()
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "http://evil.example", "Host": f"evil.example:{gateway.port}"},
    ):
        assert (await get(gateway.port, "/", headers)).status == 200
        for target in ("overview", "devices", "events", "quarantine", "messages/x"):
            refused = await get(gateway.port, f"/api/v1/admin/{target}", headers)
            assert (refused.status, refused.body) == (401, b'{"message":"Missing JWT token"}')
            assert not [name for name in refused.headers if name.startswith("access-control")]


def test_the_files_load_nothing_from_elsewhere_and_have_no_inline_code() -> None:
    for name, file in read_files().items():
        text = file.body.decode()
        urls = set(re.findall(r"(?:https?:)?//[a-z][a-z0-9.-]+\.[a-z]{2,}[^\s\"']*", re.sub(r"(?m)//\s.*$", "", text)))
        assert urls <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
        assert not re.search(r"localStorage|sessionStorage|indexedDB|document\.cookie", text), name
        if name.endswith((".html", ".svg")):
            assert not re.search(r"<script(?![^>]* src=)|<style|\son[a-z]+=|\sstyle=", text), name


PAUSES = """
import {getEventListeners} from "node:events";
globalThis.location = new URL("http://127.0.0.1/");
const {pause} = await import(process.argv[1]);
const leave = new AbortController();
for (let at = 0; at < 5; at++) await pause(0, leave.signal);
const left = getEventListeners(leave.signal, "abort").length;
const last = pause(1e6, leave.signal).catch((error) => error.name);
leave.abort();
console.log(left, await last);
"""


def in_node(script: str, module: str) -> str:
    """The output of a script that gets the URL of one of the console's modules as its argument."""
    command = ["node", "--input-type=module", "--eval", script, (STATIC / "js" / module).as_uri()]
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js")
def test_a_page_that_waits_again_and_again_collects_no_listeners() -> None:
    assert in_node(PAUSES, "api.js") == "0 AbortError\n"


# A gateway that lets the device in and ends each connection at once; one wait ends early, and the last one for good.
RECONNECTIONS = """
import {getEventListeners} from "node:events";
globalThis.location = new URL("http://127.0.0.1/");
globalThis.WebSocket = class {
  bufferedAmount = 0;
  constructor() { setTimeout(() => { this.onopen(); this.onclose({code: 1013, reason: ""}); }); }
};
let chance = 0;
Math.random = () => chance;
const {Link} = await import(process.argv[1]);
const [counts, phases] = [[], []];
let leave, attempts = 0;
const link = new Link({
  findUrl: async () => new URL("ws://127.0.0.1/ws"),
  getToken: async (deviceId, isAgain, signal) => { leave = signal; return "t"; },
  onState({phase}) {
    phases.push(phase);
    if (phase === "connecting") counts.push(getEventListeners(leave, "abort").length);
    if (phase === "connecting" && ++attempts >= 19) chance = 1;
    if (phase === "waiting" && attempts === 19) setTimeout(() => link.hurry());
    if (phase === "waiting" && attempts === 20) setTimeout(() => link.disconnect());
  },
  onEnd() {},
});
link.connect("doll");
const left = () => getEventListeners(leave, "abort").length;
process.on("exit", () => console.log(attempts, Math.max(...counts), left(), phases.at(-1)));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js")
def test_a_device_that_connects_again_and_again_collects_no_listeners() -> None:
    assert in_node(RECONNECTIONS, "try/link.js") == "20 0 0 off\n"


def test_an_installation_has_every_file() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    folders = '("", "css/", "js/", "js/pages/", "js/try/")'
    assert f'"cocoa_tornado.console": [f"static/{{folder}}*.*" for folder in {folders}]' in setup
    assert {name.rpartition("/")[0] for name in read_files()} == {"", "css", "js", "js/pages", "js/try"}
    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    assert "graft cocoa_tornado/console/static" in (ROOT / "MANIFEST.in").read_text(encoding="utf-8")


def test_the_overview_explains_every_reason_of_a_refusal_or_a_close() -> None:
    script = (STATIC / "js" / "pages" / "overview.js").read_text(encoding="utf-8")
    for name, reasons in (
        ("REFUSALS", set(LABELS["cocoa_handshakes"]) - {"accepted"}),
        ("CLOSE_CODES", set(CLOSE_CODES)),
    ):
        words = re.search(rf"^const {name} = {{(.*?)^}};", script, re.MULTILINE | re.DOTALL)
        assert words is not None
        assert set(re.findall(r"(\w+): \"", words[1])) == reasons
