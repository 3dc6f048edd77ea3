"""The console in Firefox: that each page works there, too, and the microphone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from testing.firefox import FIREFOX, FirefoxPage, firefox
from testing.pages import by_text
from testing.waiting import eventually

from ..admin.conftest import StartAdmin
from ..harness import RESULTS
from .test_browser import link

pytestmark = [
    pytest.mark.skipif(FIREFOX is None, reason="no Firefox is installed"),
    pytest.mark.gen_test(timeout=180),
]

WIDE: Final = "document.documentElement.scrollWidth - innerWidth"


async def visit(page: FirefoxPage, way: str) -> None:
    await page.evaluate(f"location.hash = {json.dumps(f'#/{way}')}")
    await page.until("document.querySelector('main h1') && !document.querySelector('.skeleton')")


async def test_each_page_works_in_firefox_and_the_microphone_is_heard(start_admin: StartAdmin, tmp_path: Path) -> None:
    gateway = await start_admin(mailbox="memory://", speech="pocketsphinx://")
    device = await gateway.connect("doll")
    await gateway.gateway.broker.publish(RESULTS, "doll", b'{"text":"for whom?"}')
    (tmp_path / "profile").mkdir()
    async with firefox(tmp_path / "profile") as page:
        await page.go(link(gateway))
        await page.until_text("all ready")
        assert await page.evaluate("location.href") == f"http://127.0.0.1:{gateway.port}/#/"
        await page.until("document.querySelector('.chart path') !== null")
        await visit(page, "devices")
        await page.click(by_text("tbody a", "doll"))
        await page.until_text("Last events")
        await visit(page, "send")
        await page.fill("[placeholder='doll-1']", "doll")
        await page.fill("textarea", "Good night")
        await page.click(by_text("button", "Explain first"))
        await page.until_text("connected to")
        await page.click(by_text("main button", "Send"))
        await page.until_text("Published.")
        assert json.loads(await device.recv())["text"] == "Good night"
        await page.click("document.querySelector('.sent a')")
        await page.until_text("doll: written")
        await visit(page, "tail")
        await page.until_text("live")
        await gateway.publish("doll", "Good morning")
        await page.until_text("Good morning")
        await visit(page, "quarantine")
        await page.click(by_text("button", "Correct…"))
        await page.fill("dialog textarea", '{"device_id":"doll","text":"for you"}')
        await page.click(by_text("dialog button", "Requeue"))
        await page.until_text("requeued as")
        await visit(page, "try")
        await page.fill("[name=device]", "bear")
        await page.press("Enter")
        await page.until_text("connected as bear")
        await page.click("[document.querySelector('[data-key=speak]')].find((each) => !each.disabled)")
        # A machine without any sound output gives Firefox no sound input either, and the page says so.
        await page.until("/binary|No audio[.]/.test(document.querySelector('main').innerText)")
        await page.press("Escape")
        await page.look(390, 844)
        for way in ("", "devices", "devices/doll", "tail", "send", "quarantine"):
            await visit(page, way)
            assert await page.evaluate(WIDE) <= 0, way
        await eventually(lambda: gateway.gateway.hub.get_client_by_device("bear") is None)
        assert page.faults == []
