"""The console in a real browser: what an operator sees and does, by keyboard, on a phone, and among hostile text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from testing.browser import CHROMIUM
from testing.chromium import Page, by_text, chromium

from ..admin.conftest import BASE, StartAdmin, admin_token, ask, send
from ..harness import RESULTS, Harness

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.gen_test(timeout=120),
]

PAGES: Final = ("", "devices", "devices/doll", "tail", "trace", "trace/m1", "send", "explain", "quarantine", "try")


def link(gateway: Harness, *scopes: str) -> str:
    port = gateway.gateway.parts.listeners.admin_port or gateway.port
    return f"http://127.0.0.1:{port}/#token={admin_token(*scopes)}"


async def visit(page: Page, way: str) -> None:
    """Go to a page of the console, and wait until it no longer loads."""
    await page.evaluate(f"location.hash = {json.dumps(f'#/{way}')}")
    await page.until("document.querySelector('main h1') && !document.querySelector('.skeleton')")


async def closed(device: ClientConnection) -> int | None:
    """Read until the end; returns the close code."""
    try:
        while True:
            await device.recv()
    except ConnectionClosed as error:
        return None if error.rcvd is None else error.rcvd.code


async def test_the_link_signs_in_and_leaves_no_token_and_an_operator_disconnects_a_device_by_keyboard(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    gateway = await start_admin(server_name="a")
    device = await gateway.connect("doll")
    async with chromium(tmp_path / "profile") as browser:
        page = await browser.page(link(gateway))
        await page.until_text("Connected devices")
        await page.until("document.querySelector('.stat strong')?.textContent === '1'")
        assert await page.evaluate("location.href") == f"http://127.0.0.1:{gateway.port}/#/"
        assert await page.evaluate("history.length") <= 2
        # A chart in which numbers are missing is two lines with an area below each.
        chart = "await import('/console/js/charts.js').then(({chart}) => chart('x', {format: String}))"
        points = "[1, 2, null, 3, 4].map((each) => ({at: 0, values: [each]}))"
        paths = (
            f"(async () => {{ const it = {chart}; it.update({points}); return it.figure.querySelectorAll('path'); }})()"
        )
        assert await page.evaluate(f"{paths}.then((found) => found.length)") == 4
        kept = "JSON.stringify([localStorage.length, sessionStorage.length, document.cookie])"
        assert await page.evaluate(kept) == '[0,0,""]'
        # From here on by keyboard alone: the link in the navigation, the device, its button, the dialog.
        await tab_to(page, "document.activeElement.textContent === 'Devices'")
        await page.press("Enter")
        await page.until_text("1 device")
        await page.until("document.activeElement.tagName === 'H1'")
        await tab_to(page, "document.activeElement.textContent === 'doll'")
        await page.press("Enter")
        await page.until(
            "document.querySelector('h1').textContent.includes('doll') && document.activeElement.tagName === 'H1'"
        )
        await page.until_text("connected")
        await tab_to(page, "document.activeElement.textContent === 'Disconnect'")
        await page.press("Enter")
        await page.until("document.querySelector('dialog[open] input') === document.activeElement")
        await page.press("Escape")
        await page.until("!document.querySelector('dialog')")
        await page.until("document.activeElement.textContent === 'Disconnect'")
        await page.press("Enter")
        await page.until("document.querySelector('dialog[open]')")
        await page.press("Enter")
        assert await closed(device) == 4410
        await page.until_text("1 connection closed.")
        await page.until_text("Not connected")
        await page.until_text("closed 4410")
        assert (page.faults, page.dialogs) == ([], [])


async def tab_to(page: Page, condition: str) -> None:
    """Press Tab until the focus is where it is to be."""
    for _ in range(60):
        if await page.evaluate(condition):
            return
        await page.press("Tab")
    raise AssertionError(f"no Tab leads there: {condition}")


async def test_a_message_is_sent_seen_and_traced_and_a_rejected_record_put_back_once(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    gateway = await start_admin(admin_port=0)
    device = await gateway.connect("doll")
    await gateway.gateway.broker.publish(RESULTS, "doll", b'{"text":"for whom?"}')
    async with chromium(tmp_path / "profile") as browser:
        tail = await browser.page(link(gateway))
        await visit(tail, "tail")
        await tail.until_text("live")
        page = await browser.page(link(gateway))
        await visit(page, "send")
        await page.fill("[placeholder='doll-1']", "doll")
        await page.fill("textarea", "Good night")
        await page.click(by_text("button", "Send"))
        await page.until_text("Published.")
        assert json.loads(await device.recv())["text"] == "Good night"
        await tail.until_text("Good night")
        # However long another message is, it is a few lines.
        await gateway.publish("doll", "\n".join(["long"] * 8_000))
        await device.recv()
        await tail.until_text("long \u23ce long")
        assert await tail.evaluate("document.querySelector('.tail').scrollHeight") < 800
        message_id = await tail.until("document.querySelector('.tail .meta a')?.textContent")
        await tail.click("document.querySelector('.tail .meta a')")
        await tail.until(f"location.hash === '#/trace/{message_id}'")
        await tail.until("document.querySelector('.trace li') && document.body.innerText.includes('written')")
        assert "doll" in await tail.evaluate("document.querySelector('table').innerText")
        await tail.until_text("doll: written")
        await visit(tail, "trace/elsewhere/0/0")
        await tail.until_text("is read, not elsewhere")
        # A record that no operator may requeue twice.
        await visit(page, "quarantine")
        await page.until_text("no_device")
        await page.click(by_text("button", "Requeue unchanged"))
        await page.until_text("Correct it first")
        await page.click(by_text("button", "Correct…"))
        await page.until("document.querySelector('dialog textarea')")
        await page.fill("dialog textarea", '{"device_id":"doll","text":"for you"}')
        row = (await ask_port(gateway, "GET", "/quarantine"))["records"][0]
        await ask_port(
            gateway, "POST", f"/quarantine/{row['partition']}/{row['offset']}/requeue", {"device_id": "doll"}
        )
        await page.click(by_text("dialog button", "Requeue"))
        await page.until_text("has already been requeued")
        assert (page.faults_but(409, 400), tail.faults_but(404)) == ([], [])


async def test_an_answer_leaves_focus_selection_and_what_is_open_where_they_are(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    gateway = await start_admin()
    await gateway.connect("doll-b")
    async with chromium(tmp_path / "profile") as browser:
        page = await browser.page(link(gateway))
        await visit(page, "devices")
        await page.until_text("1 device")
        marked = "document.querySelector('tbody tr').isMarked"
        await page.evaluate(f"{marked} = true; document.querySelector('tbody a').focus()")
        await page.evaluate("getSelection().selectAllChildren(document.querySelector('tbody th .id'))")
        await gateway.connect("doll-c")
        await page.until_text("2 devices")
        assert await page.evaluate(marked)
        assert await page.evaluate("document.activeElement.textContent") == "doll-b"
        assert await page.evaluate("String(getSelection())") == "doll-b"
        # The row that it was in is another's now.
        await gateway.connect("doll-a")
        await page.until_text("3 devices")
        assert await page.evaluate("document.activeElement.textContent") == "doll-b"
        # One that is not connected has a page, too.
        await visit(page, "devices?prefix=away")
        await page.click(by_text("main a", "away"))
        await page.until_text("No server knows this device")
        assert page.faults_but(404) == []


DASHED: Final = ("doll-\u05d0\u05d1-1", "doll-1-\u05d0\u05d1")
ODD: Final = (".", "..", "a\\b", "\\u202e", "x\u202e", "%2e", "a/../b", *DASHED)
SHOWN: Final = {"\\u202e": "\\u005cu202e", "x\u202e": "x\\u202e"}
# The parts of an id from left to right, as they stand on the screen.
ORDER: Final = """
  [...document.querySelectorAll("h1 .id bdi")].map((each) => [each.getBoundingClientRect().left, each.textContent])
    .sort(([one], [other]) => one - other).map(([, text]) => text)
"""


async def test_a_device_with_any_id_has_a_page_and_no_two_ids_look_alike(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    gateway = await start_admin()
    for device_id in ODD:
        await gateway.connect_with(gateway.token(device_id, groups=[".."] if device_id == "." else []))
    async with chromium(tmp_path / "profile") as browser:
        page = await browser.page(link(gateway))
        for device_id in ODD:
            await visit(page, "devices")
            await page.click(by_text("tbody th a", SHOWN.get(device_id, device_id)))
            await page.until("document.querySelector('h1 .id') && document.querySelector('.pill.ok')")
            assert await page.evaluate("document.querySelector('h1 .id').textContent") == SHOWN.get(
                device_id, device_id
            )
            if device_id in DASHED:
                assert "".join(await page.evaluate(ORDER)) == device_id
        await visit(page, "devices/..")
        await page.click(by_text("button", "Block"))
        await page.click(by_text("dialog button", "Block"))
        await page.until_text("Connections are refused with 403")
        blocked = {each: (await ask(gateway, "GET", f"/devices/-?id={each}")).body["blocked"] for each in (".", "..")}
        assert blocked == {".": False, "..": True}
        await visit(page, "devices?group=..&members=1")
        await page.until("document.querySelectorAll('tbody tr').length === 1")
        await visit(page, "trace/..")
        await page.until_text("Message not found")
        assert page.faults_but(404) == []


async def ask_port(gateway: Harness, method: str, target: str, body: object = None) -> Any:
    """One request to the admin API on its own port."""
    data = b"" if body is None else json.dumps(body).encode()
    response = await send(
        gateway, method, BASE + target, admin_token(), data, gateway.gateway.parts.listeners.admin_port
    )
    return json.loads(response.body)


HOSTILE: Final = "<img src=x onerror=hacked=1>\"'><script>hacked=1</script><svg onload=hacked=1>javascript:hacked=1"
SPOOF: Final = "\u202egnp.exe\u2066\u200b"
CONTROL: Final = "\x1b[31mred\x07\x00"
CLEAN: Final = """
  typeof hacked === "undefined" && !document.querySelector("iframe, object, base, svg[onload]")
  && [...document.querySelectorAll("img")].every((each) => each.getAttribute("src") === "console/icon.svg")
  && [...document.querySelectorAll("script")].every((each) => each.getAttribute("src") === "console/js/main.js")
  && [...document.querySelectorAll("a")].every((each) => each.getAttribute("href").startsWith("#"))
  && !/[\\u202e\\u2066\\u200b\\u001b\\u0007\\u0000]/.test(document.body.textContent)
"""

LIES: Final = (Path(__file__).parent / "lies.js").read_text(encoding="utf-8")


async def test_no_text_of_anybody_becomes_markup_code_or_an_invisible_trick(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    gateway = await start_admin(mailbox="memory://")
    device_id, group = f"<img src=x onerror=hacked=1>{SPOOF}", f'"><script>hacked=1</script>{SPOOF}'
    token = gateway.token(device_id, user_id=HOSTILE, groups=[group], device_version=HOSTILE)
    await gateway.connect_with(token)
    record = {"device_id": device_id, "text": HOSTILE + SPOOF + CONTROL, "id": "<b>m1</b>"}
    await gateway.gateway.broker.publish(RESULTS, device_id, json.dumps(record).encode())
    await gateway.gateway.broker.publish(RESULTS, HOSTILE, json.dumps({"text": HOSTILE + SPOOF + CONTROL}).encode())
    async with chromium(tmp_path / "profile") as browser:
        page = await browser.page(link(gateway))
        await page.until_text("Servers")
        # Real ones first: what the rules let through.
        await visit(page, "devices")
        await page.until_text("<img src=x onerror=hacked=1>\\u202egnp.exe")
        await page.click("document.querySelector('tbody a')")
        await page.until_text("Last events")
        assert await page.evaluate(CLEAN)
        await visit(page, "quarantine")
        await page.until_text("\\u001b[31mred")
        assert await page.evaluate(CLEAN)
        await visit(page, "trace/%3Cb%3Em1%3C%2Fb%3E")
        await page.until_text("addressed")
        assert await page.evaluate(CLEAN)
        # Then every field of every answer.
        await page.evaluate(LIES.replace("bad = HOSTILE", "bad = " + json.dumps(HOSTILE + SPOOF + CONTROL)))
        for way in (*PAGES, "devices?group=x&members=1"):
            await visit(page, way)
            if way not in ("trace", "send", "explain", "try"):
                await page.until("document.body.textContent.includes('onerror=hacked=1')")
            for name in ("Explain", "Explain first", "Send", "Correct…"):
                await page.evaluate(f"{by_text('main button', name)}?.click()")
            await page.evaluate("new Promise((resolve) => setTimeout(resolve, 60))")
            assert await page.evaluate(CLEAN), way
            await page.evaluate("document.querySelectorAll('dialog').forEach((each) => each.close())")
        await page.evaluate("globalThis.isFailing = true")
        for way in PAGES:
            await visit(page, way)
            assert await page.evaluate(CLEAN), way
        assert page.dialogs == []
        assert page.faults == []


async def test_every_page_fits_a_phone_and_says_what_the_token_does_not_permit(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    gateway = await start_admin()
    await gateway.connect("a-device-with-a-very-long-name-" + "x" * 90)
    await gateway.connect("doll")
    await gateway.gateway.broker.publish(RESULTS, "doll", b'{"text":"for whom?"}')
    async with chromium(tmp_path / "profile") as browser:
        page = await browser.page(link(gateway, "admin:read"), 390, 844, dark=True)
        await page.until_text("Servers")
        for way in PAGES:
            await visit(page, way)
            wide = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, way
        # Reading is all that it may: what would write is there, and disabled.
        await visit(page, "devices/doll")
        await page.until(f"{by_text('button', 'Disconnect')}?.disabled")
        await visit(page, "send")
        await page.until_text("cocoa mint-token --admin --scope admin:read --scope admin:write")
        # The menu is a button here.
        assert await page.evaluate("!document.querySelector('nav').checkVisibility()")
        await page.click(by_text("button", "Menu"))
        await page.click(by_text("nav a", "Quarantine"))
        await page.until_text("the text requires the scope admin:text")
        assert "for whom" not in await page.evaluate("document.body.innerText")
        assert await page.evaluate("[...document.querySelectorAll('svg')].every((each) => each.clientHeight < 40)")
        assert await page.evaluate("!document.querySelector('nav').checkVisibility()")
        # Another token may do nothing at all.
        await page.evaluate(f"location.hash = '#token={admin_token('admin:text')}'")
        await page.until_text("Not permitted")
        for way in ("", "devices", "devices/doll", "tail", "trace/m1", "quarantine"):
            await visit(page, way)
            await page.until_text("admin:read")


async def test_a_token_that_is_refused_leads_to_the_form_and_a_lost_server_to_a_banner(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    gateway = await start_admin(server_name="here")
    async with chromium(tmp_path / "profile") as browser:
        page = await browser.page(f"http://127.0.0.1:{gateway.port}/#token=%")
        await page.until("document.activeElement.id === 'token' && document.activeElement.type === 'password'")
        await page.fill("#token", "pasted … with a gap")
        await page.press("Enter")
        await page.until_text("This is not a token.")
        await page.fill("#token", "rubbish")
        await page.press("Enter")
        await page.until_text("does not accept this token")
        await page.fill("#token", admin_token(subject="<b>ann</b>", exp=1e300))
        await page.press("Enter")
        await page.until_text("<b>ann</b>")
        await page.until_text("all ready")
        theme = "getComputedStyle(document.documentElement).colorScheme"
        assert await page.evaluate(theme) == "light dark"
        await page.click(by_text("button", "Dark theme"))
        assert await page.evaluate(theme) == "dark"
        await page.evaluate(
            "const real = fetch; globalThis.fetch = async (...request) =>"
            ' new Response((await (await real(...request)).text()).replaceAll(\'"server":"here"\', \'"server":"b"\'))'
        )
        await page.until_text("here is gone. It last answered at")
        await page.evaluate("globalThis.fetch = async () => { throw new TypeError('gone'); }")
        await page.until_text("Connection lost.")
        await page.until_text("out of date")
        assert not await page.evaluate("document.body.innerText.includes('all ready')")
        await page.evaluate("location.hash = '#/explain'")
        await page.click(by_text("main button", "Explain"))
        await page.until_text("Try again when the server is back.")
        await page.evaluate("location.hash = '#/quarantine'")
        await page.until_text("The console retries automatically.")
        await page.evaluate("globalThis.fetch = real")
        await page.until_text("No rejected records")
        await page.click(by_text("button", "Sign out"))
        await page.until("document.querySelector('#token')")
        assert (await ask(gateway, "GET", "/overview")).status == 200
