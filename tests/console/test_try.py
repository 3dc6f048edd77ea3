"""The page *Try it* in a real browser: a device that speaks, receives, and comes back after each end."""

from __future__ import annotations

import json
import re
import struct
import time
from pathlib import Path
from typing import Final

import pytest

from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.rules.close_codes import DISCONNECTED, REPLACED
from cocoa_tornado.rules.identity import TokenPolicy
from testing.browser import CHROMIUM
from testing.chromium import Page, by_text, chromium
from testing.waiting import eventually

from ..admin.conftest import StartAdmin, admin_token, ask, send
from ..harness import Harness
from ..identity.material import private_pem, public_pem

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.gen_test(timeout=120),
]

DEMO: Final = Path(__file__).parents[2] / "demo"
MICROPHONE: Final = (
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
    f"--use-file-for-fake-audio-capture={DEMO / 'digits.wav'}%noloop",
)
CONNECT, SPEAK = "document.querySelector('[data-key=connect]')", "document.querySelector('[data-key=speak]')"
WORDS: Final = "document.querySelector('.finals').innerText"
JOURNAL: Final = "document.querySelector('.journal').innerText"


async def opened(page: Page, gateway: Harness, host: str = "127.0.0.1") -> None:
    """Sign in, and go to the page."""
    port = gateway.gateway.parts.listeners.admin_port or gateway.port
    await page.go(f"http://{host}:{port}/#token={admin_token()}")
    await page.until("document.querySelector('nav') !== null")
    await page.evaluate("location.hash = '#/try'")
    await page.until(f"{CONNECT} !== null")


async def connected(page: Page, device_id: str) -> None:
    """Connect as a device, by keyboard."""
    await page.fill("[name=device]", device_id)
    await page.press("Enter")
    await until_pill(page, "connected")


async def until_pill(page: Page, text: str) -> None:
    await page.until(f"[...document.querySelectorAll('.pill')].some((each) => each.textContent === {json.dumps(text)})")


async def until_in(page: Page, where: str, pattern: str) -> None:
    await page.until(f"new RegExp({json.dumps(pattern)}, 's').test({where})")


def is_connected(gateway: Harness, device_id: str) -> bool:
    return gateway.gateway.hub.get_client_by_device(device_id) is not None


async def test_words_appear_as_one_speaks_into_the_microphone_or_sends_a_file(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    gateway = await start_admin(speech="pocketsphinx://", mailbox="memory://")
    async with chromium(tmp_path / "profile", *MICROPHONE) as browser:
        page = await browser.page("about:blank")
        await opened(page, gateway)
        assert re.fullmatch(
            r"try-[a-z]+-[a-z]+-\d\d", await page.evaluate("document.querySelector('[name=device]').value")
        )
        await connected(page, "doll")
        await page.until(f"!{SPEAK}.disabled && ({SPEAK}.focus(), true)")
        await page.press("Enter")
        await page.until("document.querySelector('.partials p') !== null")
        await until_in(page, WORDS, "two|nine|three")
        assert await page.evaluate("document.querySelector('.finals').getAttribute('aria-live')") == "polite"
        assert await page.evaluate("document.querySelector('.partials [aria-live], .journal [aria-live]')") is None
        assert await page.evaluate("document.querySelectorAll('.level rect').length") > 20
        # Each final has a cursor, and the page acknowledges it.
        mailbox = gateway.gateway.mailbox
        assert isinstance(mailbox, MemoryMailbox)
        await eventually(lambda: mailbox.counters.acknowledged > 0)
        await page.press("Escape")
        await page.until(f"{SPEAK}.textContent === 'Speak'")
        await until_in(page, JOURNAL, "audio_end")
        # One bar that hardly moves for those who want no motion; and the file is heard as well.
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        await choose(page, DEMO / "somewhere.wav")
        await page.until("document.querySelectorAll('.level rect').length === 1")
        await until_in(page, WORDS, "go somewhere")
        await page.until(f"{SPEAK}.textContent === 'Speak'")
        # Leaving the page ends it all, in the usual way.
        await page.evaluate("location.hash = '#/'")
        await eventually(lambda: not is_connected(gateway, "doll"))
        events = (await ask(gateway, "GET", "/devices/doll")).body["events"]
        assert [(event["event"], event["code"]) for event in events][-1] == ("closed", 1000)
        assert (page.faults, page.dialogs) == ([], [])


async def test_messages_go_both_ways_and_each_end_is_explained_and_survived(
    start_admin: StartAdmin, tmp_path: Path
) -> None:
    gateway = await start_admin()
    async with chromium(tmp_path / "profile", MICROPHONE[0]) as browser:
        page = await browser.page("about:blank")
        await opened(page, gateway)
        await connected(page, "doll")
        await page.until_text("Speech recognition is off.")
        permission = {"permission": {"name": "microphone"}, "setting": "denied"}
        await page.call("Browser.setPermission", **permission, origin=f"http://127.0.0.1:{gateway.port}")
        await page.click(SPEAK)
        await page.until_text("Microphone blocked.")
        hostile = "<img src=x onerror=alert(1)>"
        await page.fill("[name=text]", hostile)
        await page.press("Enter")
        await until_in(page, JOURNAL, f"received\\s*transcription {re.escape(hostile)}")
        await page.click("document.querySelector('[name=way][value=up]')")
        await page.fill("[name=text]", "from the doll")
        await page.press("Enter")
        await until_in(page, JOURNAL, "sent\\s*text from the doll")
        # The log has a bound.
        for number in range(210):
            await gateway.publish("doll", f"many {number}")
        await until_in(page, JOURNAL, "many 209")
        assert await page.evaluate("document.querySelectorAll('.journal li').length") == 200
        # Kicked, and asked to come back after a second: it does.
        assert (await ask(gateway, "DELETE", "/devices/doll/connections?reconnect_after=1")).body["closed"] == 1
        await until_in(
            page, JOURNAL, "Disconnected by an operator \\(4410, “disconnected by an operator”\\).*connected"
        )
        await until_pill(page, "connected")
        # Its place was taken: it does not fight for it.
        client = gateway.gateway.hub.get_client_by_device("doll")
        assert client is not None
        client.end(REPLACED)
        await until_pill(page, "replaced")
        await page.until_text("Another connection of this device has replaced it. (4409, “replaced by")
        assert re.search(
            r"Reconnecting in \d+ (min|s)", await page.evaluate("document.querySelector('.waiting').innerText")
        )
        # The other one holds the device now.
        other = await gateway.connect("doll")
        await page.click(by_text("button", "Now"))
        await page.until_text("Another connection of this device is open. (409, “Device already connected”)")
        await other.close()
        await page.until(f"{by_text('button', 'Now')}?.click() || document.querySelector('.pill.ok') !== null")
        await page.click(by_text("button", "Disconnect"))
        await eventually(lambda: not is_connected(gateway, "doll"))
        # An id that no device may have.
        await page.fill("[name=device]", "cocoa-canary-1")
        await page.press("Enter")
        await page.until_text("Invalid device id.")
        wide = "document.documentElement.scrollWidth - innerWidth"
        await page.look(390, 844)
        assert await page.evaluate(wide) <= 0
        refusals = ("409", "400", "426", "WebSocket")
        assert [fault for fault in page.faults if not any(word in fault for word in refusals)] == []
        assert page.dialogs == []


async def test_what_is_missing_has_a_clear_state(
    start_admin: StartAdmin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = tmp_path / "public.pem"
    pem.write_bytes(public_pem("EC"))
    # The admin API has a port of its own, so that the page can't read what the devices' port answers.
    gateway = await start_admin(jwt_secret="", jwt_key=(str(pem),), mailbox="memory://", admin_port=0)
    signer = Signer.from_pem(private_pem("EC"), "test")

    def minted(now: float) -> str:
        return mint(TokenRequest("signed elsewhere", 99), signer, TokenPolicy(), now)

    async with chromium(tmp_path / "profile", "--host-resolver-rules=MAP gateway.test 127.0.0.1") as browser:
        page = await browser.page("about:blank")
        await opened(page, gateway)
        await page.fill("[name=device]", "doll")
        await page.press("Enter")
        await page.until_text("make device tokens.")
        # The focus is in the field for a token. One that has expired is refused, and another is asked for.
        await page.until("document.activeElement.name === 'device-token'")
        await page.fill("[name=device-token]", minted(0))
        await page.press("Enter")
        await page.until_text("The gateway does not accept this token.")
        await page.fill("[name=device-token]", minted(time.time()))
        await page.press("Enter")
        await until_pill(page, "connected")
        assert is_connected(gateway, "signed elsewhere")
        await page.click(SPEAK)
        await page.until_text("No microphone found.")
        not_sound = tmp_path / "not sound.wav"
        not_sound.write_bytes(b"RIFF, but nothing else")
        await choose(page, not_sound)
        await page.until_text("Cannot decode this file.")
        # The page can't read why the device is refused, but asks the gateway. It discards a cursor that is not known.
        await gateway.publish("signed elsewhere", "hello")
        await until_in(page, JOURNAL, "transcription hello.*ack")
        monkeypatch.setattr(gateway.gateway.mailbox, "_key", b"k" * 32)
        client = gateway.gateway.hub.get_client_by_device("signed elsewhere")
        assert client is not None
        client.end(DISCONNECTED)
        await until_in(page, JOURNAL, "refused: Refused \\(400, “Unknown cursor”\\).*connected as signed elsewhere")
        target = "/api/v1/admin/devices/signed%20elsewhere/block"
        admin_port = gateway.gateway.parts.listeners.admin_port
        assert (await send(gateway, "PUT", target, admin_token(), b"{}", admin_port)).status == 200
        await page.until_text("(403, \u201cDevice blocked\u201d)")
        await opened(page, gateway, "gateway.test")
        await page.until_text("The microphone requires https.")
        assert await page.evaluate(f"{SPEAK}.disabled")


async def choose(page: Page, file: Path) -> None:
    """Choose a file to send."""
    await page.until("!document.querySelector('.speaking .button.large + .button.large').disabled")
    chooser = await page.call("Runtime.evaluate", expression="document.querySelector('input[type=file]')")
    await page.call("DOM.setFileInputFiles", files=[str(file)], objectId=chooser["result"]["objectId"])


MEASURE: Final = """
import("/console/js/try/resampler.js").then(({Resampler, toPcm}) => {
  const tone = (hz, rate) => Float32Array.from({length: rate}, (_, at) => Math.sin((2 * Math.PI * hz * at) / rate));
  const level = (samples) => 10 * Math.log10(samples.reduce((sum, each) => sum + each * each, 0) / samples.length);
  const results = [];
  for (const rate of [8000, 16000, 22050, 44100, 48000, 96000]) {
    for (const hz of [440, 1000, 3400, 10000, 15000].filter((each) => each < rate / 2)) {
      const resampler = new Resampler(rate);
      const [input, output] = [tone(hz, rate), []];
      // As the audio thread gives them, and in other pieces, too.
      for (let at = 0, size = 128; at < input.length; at += size, size = size === 128 ? 1 : 128) {
        output.push(...resampler.push(input.subarray(at, at + size)));
      }
      output.push(...resampler.flush());
      const [middle, wanted] = [output, tone(hz, 16000)].map((each) => each.slice(800, -800));
      const error = level(middle.map((each, at) => each - wanted[at]));
      results.push({rate, hz, length: output.length, db: level(middle) - level(wanted), error});
    }
  }
  return {results, pcm: [...new Uint8Array(toPcm(Float32Array.of(0, 1, -1, 2, -2, 0.5)))]};
})
"""


# For each way to go on: the shortest and the longest wait in seconds, at the first and at the twentieth attempt.
ENDINGS: Final = """
import("/console/js/try/endings.js").then(({closed, refused, delay}) => {
  const of = ({title, how}, options = {}) => {
    const wait = (attempt, random) => delay({how}, attempt, {random: () => random, ...options}) / 1000;
    return {title, how, waits: [wait(0, 0), wait(0, 1), wait(20, 0), wait(20, 1)]};
  };
  return {
    closed: Object.fromEntries(CODES.map((code) => [code, of(closed(code))])),
    refused: Object.fromEntries(STATUSES.map((status) => [status, of(refused(status))])),
    asked: of(closed(1001), {askedMs: 1500}).waits,
    later: of(refused(503), {retryAfterMs: 7000}).waits,
  };
})
"""


def documented(pattern: str) -> list[int]:
    """The numbers at the beginning of the rows of a table in docs/protocol.rst."""
    text = (
        (DEMO.parent / "docs" / "protocol.rst").read_text(encoding="utf-8").partition("\nMessages to the device\n")[0]
    )
    return sorted({int(number) for number in re.findall(pattern, text, re.MULTILINE)})


async def test_tones_keep_level_and_time_or_vanish_and_each_documented_end_has_words_and_a_delay(
    gateway: Harness, tmp_path: Path
) -> None:
    codes, statuses = documented(r"^([14]\d{3})  "), documented(r"^(4\d\d|503)    [a-z`]")
    assert (len(codes), len(statuses)) == (10, 8)
    async with chromium(tmp_path / "profile") as browser:
        page = await browser.page(f"http://127.0.0.1:{gateway.port}/")
        measured = await page.evaluate(MEASURE)
        ends = await page.evaluate(ENDINGS.replace("CODES", str(codes)).replace("STATUSES", str(statuses)))
    for code, end in ends["closed"].items():
        assert end["title"] != "Closed" or code == "1000"
    assert [end["title"] for end in ends["refused"].values() if end["title"] == "No connection"] == []
    for end in (*ends["closed"].values(), *ends["refused"].values()):
        assert end["waits"] == ([60, 300, 60, 300] if end["how"] == "slow" else [0, 1, 0, 60])
    assert {code for code, end in ends["closed"].items() if end["how"] == "slow"} == {"1002", "1007", "4409"}
    assert {code for code, end in ends["refused"].items() if end["how"] == "slow"} == {"400", "403", "404"}
    assert ends["asked"] == [1.5] * 4
    assert ends["later"] == [7, 8, 7, 67]
    for tone in measured["results"]:
        assert tone["length"] == 16_000
        if tone["hz"] < 8_000:
            assert abs(tone["db"]) < 0.01, tone
            assert tone["error"] < -70, tone  # shifted by a thousandth of a sample it would be more
        else:
            assert tone["db"] < -80, tone
    values = struct.unpack("<6h", bytes(measured["pcm"]))
    assert values == (0, 32_767, -32_767, 32_767, -32_767, 16_384)
