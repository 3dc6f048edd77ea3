"""A real browser: what a page of another origin can do and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from testing.browser import CHROMIUM, open_page

from .conftest import StartGateway

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

SCRIPT = """
const http = GATEWAY, results = {};
const bearer = (token) => ({Authorization: `Bearer ${token}`});
async function ask(name, path, options = {}) {
  try {
    const answer = await fetch(http + path, options);
    const [retry, challenge] = ["Retry-After", "WWW-Authenticate"].map((field) => answer.headers.get(field));
    results[name] = {status: answer.status, body: await answer.text(), retry, challenge};
  } catch (error) {
    results[name] = error.name;
  }
  return results[name];
}
function socket(token) {
  return new Promise((resolve) => {
    const opened = new WebSocket(http.replace("http", "ws") + "/ws", ["bearer", token]);
    opened.onopen = () => resolve(opened);
    opened.onclose = (event) => resolve(event.code);
  });
}
(async () => {
  const credentials = {"X-API-Key": "backend", "X-API-Secret": "a secret"};
  const issued = await ask("token", "/api/v1/auth/token", {method: "POST", headers: credentials});
  await ask("wrong", "/api/v1/auth/token", {method: "POST", headers: {"X-API-Key": "backend"}});
  await ask("health", "/api/v1/health");
  await ask("missing", "/ws");
  if (issued.status === 200) {
    const token = JSON.parse(issued.body).token;
    await ask("plain", "/ws", {headers: bearer(token)});
    const first = await socket(token);
    results.first = first.protocol;
    const message = new Promise((resolve) => { first.onmessage = (event) => resolve(event.data); });
    results.second = await socket(token);
    await ask("why", "/ws", {headers: bearer(token)});
    const record = JSON.stringify({device_id: "backend", text: "hello"});
    await ask("record", "/api/v1/transcriptions", {method: "POST", headers: bearer(token), body: record});
    results.message = await message;
    const audio = {...bearer(token), "Content-Type": "audio/wav"};
    await ask("audio", "/api/v1/audio/stream", {method: "POST", headers: audio, body: "RIFF"});
  } else {
    results.first = await socket("rubbish");
  }
  report(results);
})();
"""


async def visit(start_gateway: StartGateway, folder: Path, *origins: str) -> dict[str, Any]:
    """A page of ``http://localhost`` and a gateway on 127.0.0.1, which is another origin and another host."""
    credentials = (("backend", "a secret"),)
    gateway = await start_gateway(api_credentials=credentials, allowed_origins=origins, duplicate_challenge_s=0.3)
    script = SCRIPT.replace("GATEWAY", json.dumps(f"http://127.0.0.1:{gateway.port}"))
    report: dict[str, Any] = await open_page(script, folder, "localhost")
    return report


@pytest.mark.gen_test(timeout=120)
async def test_a_page_of_a_listed_origin_can_be_a_device_and_learns_why_it_is_refused(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    found = await visit(start_gateway, tmp_path, "localhost")
    assert found["token"]["status"] == 200
    assert (found["wrong"]["status"], found["wrong"]["challenge"]) == (401, "ApiKey")
    assert found["health"] == "TypeError"  # nothing is for pages there
    assert (found["missing"]["status"], found["missing"]["challenge"]) == (401, "Bearer")
    assert found["plain"]["status"] == 426
    assert found["first"] == "bearer"
    assert found["second"] == 1006  # all that a browser tells of a handshake that was refused
    assert found["why"]["status"] == 409
    assert json.loads(found["why"]["body"]) == {"message": "Device already connected"}
    assert int(found["why"]["retry"]) > 0
    assert found["record"]["status"] == 202
    assert json.loads(found["message"]) == {"type": "transcription", "device_id": "backend", "text": "hello"}
    assert found["audio"]["status"] == 501  # speech is off here


@pytest.mark.gen_test(timeout=120)
async def test_a_page_of_any_other_origin_gets_and_reads_nothing(start_gateway: StartGateway, tmp_path: Path) -> None:
    found = await visit(start_gateway, tmp_path, "https://app.example")
    assert found == dict.fromkeys(("token", "wrong", "health", "missing"), "TypeError") | {"first": 1006}


LEAVING = """
const socket = () => new WebSocket(GATEWAY.replace("http", "ws") + "/ws", ["bearer", TOKEN]);
if (location.search === "") {
  const first = socket();
  addEventListener("pagehide", () => first.close());
  first.onopen = () => { location.href = "/?next"; };
} else {
  const next = socket();
  next.onopen = () => report("open");
  next.onclose = (event) => report(event.code);
}
"""


@pytest.mark.gen_test(timeout=120)
async def test_a_page_that_closes_its_socket_at_pagehide_leaves_its_place_to_the_next(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    # Without that the browser keeps the page, its socket open, and answers the challenge in its name.
    gateway = await start_gateway(allowed_origins=("localhost",), duplicate_challenge_s=0.3)
    script = LEAVING.replace("GATEWAY", json.dumps(f"http://127.0.0.1:{gateway.port}"))
    assert await open_page(script.replace("TOKEN", json.dumps(gateway.token())), tmp_path, "localhost") == "open"
