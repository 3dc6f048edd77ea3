"""Every page of the console in both themes, at a desk and on a phone: can it be read, hit and understood?

``measure.js`` computes sizes and contrasts itself. axe-core, which ``make test-nightly`` installs, judges the rest.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from testing.browser import CHROMIUM
from testing.chromium import Page, by_text, chromium

from ..admin.conftest import StartAdmin
from ..harness import RESULTS, Harness
from .test_browser import PAGES, link, visit

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.gen_test(timeout=300),
]

LOOKS: Final = tuple((width, dark) for width in (1280, 390) for dark in (False, True))
MEASURE: Final = (Path(__file__).parent / "measure.js").read_text(encoding="utf-8")
NOTHING: Final = {"targets": [], "faint": [], "wide": 0, "unlabelled": []}
AXE: Final = Path(sys.prefix) / "axe" / "node_modules" / "axe-core" / "axe.min.js"
AXE_RUN: Final = """
  axe.run({runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}).then((found) =>
    [...found.violations, ...found.incomplete].flatMap(({id, nodes}) => nodes.map(({target, any, all, none}) =>
      `${id}: ${target.join(" ")} ${[...any, ...all, ...none].map((each) => each.message).join(" ")}`)))
"""


async def start(start_admin: StartAdmin) -> Harness:
    """A gateway on which every page has something to show."""
    gateway = await start_admin(server_name="gateway-1", mailbox="memory://")
    for device_id, groups in (
        ("d", []),
        ("\u05d1\u05d5\u05d1\u05d4", ["kitchen"]),
        ("x" * 100, [f"group {n}" for n in range(64)]),
    ):
        await gateway.connect_with(gateway.token(device_id, user_id="ann", groups=groups))
    await gateway.connect("doll")
    assert (await gateway.upgrade(gateway.token("doll", lifetime_s=-60))).response.status == 401
    await gateway.publish("doll", "hello", id="m1")
    await gateway.publish("away", "later")
    await gateway.gateway.broker.publish(RESULTS, "doll", b'{"text":"for whom?"}')
    return gateway


async def states(page: Page, gateway: Harness) -> AsyncIterator[str]:
    """Bring the console into one state after the other; yields the name of each."""
    for way in PAGES:
        await visit(page, way)
        if way == "tail":
            await page.until_text("live")
            for number in range(30):
                await gateway.publish("doll", f"number {number}")
            await page.until_text("number 29")
        if way == "send":
            await page.fill("[placeholder='doll-1']", "doll")
            await page.evaluate("document.querySelector('main details').open = true")
            await page.click(by_text("button", "Explain first"))
            await page.until("document.querySelector('main table')")
        if way == "try":
            await page.click("document.querySelector('[data-key=connect]')")
            await page.until_text("connected as")
        yield way
    await visit(page, "devices/doll")
    await page.click(by_text("button", "Block"))
    await page.until("document.querySelector('dialog[open]')")
    yield "a dialog"
    await page.click(by_text("dialog button", "Block"))
    await page.until_text("Blocked.")
    await page.until_text("Connections are refused with 403")
    yield "a blocked device, and a toast"
    await page.click(by_text("button", "Unblock"))
    await page.until_text("Unblocked.")
    await gateway.connect("doll")
    for way in ("devices?prefix=nothing", "trace/nothing", "nothing"):
        await visit(page, way)
        yield way
    await page.evaluate("globalThis.real = fetch; globalThis.fetch = async () => { throw new TypeError('gone'); }")
    await visit(page, "quarantine")
    await page.until_text("Connection lost.")
    yield "a lost connection"
    await page.evaluate("globalThis.fetch = globalThis.real")
    await page.until("document.querySelector('#banner').childNodes.length === 0")
    await page.evaluate(f"location.hash = {json.dumps('#' + link(gateway, 'admin:text').partition('#')[2])}")
    await page.until_text("Not permitted")
    yield "no permission"
    await page.click(by_text("button", "Sign out"))
    await page.until("document.querySelector('#token')")
    await page.evaluate("document.querySelector('details').open = true")
    yield "signed out"
    await page.evaluate(f"location.hash = {json.dumps('#' + link(gateway).partition('#')[2])}")
    await page.until_text("all ready")


async def found(start_admin: StartAdmin, folder: Path, script: str, expression: str, clean: object) -> dict[str, Any]:
    """The findings of a script for each state and each look that is not ``clean``."""
    gateway = await start(start_admin)
    complaints = {}
    async with chromium(folder) as browser:
        page = await browser.page(link(gateway))
        await page.until_text("Servers")
        await page.evaluate(f"{script};0")
        for width, dark in LOOKS:
            await page.look(width, 844, dark=dark, calm=True)
            async for state in states(page, gateway):
                said = await page.evaluate(expression)
                if said != clean:
                    complaints[f"{state}, {width} px, {'dark' if dark else 'light'}"] = said
    return complaints


async def test_every_target_can_be_hit_and_every_text_be_read(start_admin: StartAdmin, tmp_path: Path) -> None:
    assert await found(start_admin, tmp_path / "profile", MEASURE, "measure()", NOTHING) == {}


@pytest.mark.nightly
@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: make test-nightly does that")
async def test_axe_finds_nothing_wrong_and_leaves_nothing_open(start_admin: StartAdmin, tmp_path: Path) -> None:
    script = AXE.read_text(encoding="utf-8")
    assert await found(start_admin, tmp_path / "profile", script, AXE_RUN, []) == {}


async def test_the_measure_finds_what_is_small_faint_wide_or_without_a_label(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    gateway = await start_admin()
    async with chromium(tmp_path / "profile") as browser:
        page = await browser.page(link(gateway))
        await page.until_text("Servers")
        await page.evaluate(MEASURE)
        assert await page.evaluate("measure()") == NOTHING
        await page.evaluate(
            """
            const bad = document.createElement("p");
            for (const [tag, text] of [["a", "x"], ["span", "faint"], ["input", ""]]) {
              const each = document.createElement(tag);
              if (tag === "a") each.href = "#/";
              each.textContent = text;
              if (tag === "span") each.style.color = "#888";
              if (tag === "input") each.style.cssText = "border-color: #ccc; width: 3000px";
              bad.append(each);
            }
            document.querySelector("main").append(bad);
            """
        )
        measured = await page.evaluate("measure()")
        assert [len(measured[kind]) for kind in ("targets", "faint", "unlabelled")] == [1, 2, 1]
        assert measured["wide"] > 0
