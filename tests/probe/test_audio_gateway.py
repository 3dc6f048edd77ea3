"""The probe's checks of speech against the real thing: our own gateway, real speech, and a real engine."""

from __future__ import annotations

import asyncio
import time

from cocoa_tornado.probe.credentials import Key, minted
from cocoa_tornado.probe.delivery import HttpPublisher
from cocoa_tornado.probe.run import AUDIO_CHECKS, run
from cocoa_tornado.probe.session import Session
from cocoa_tornado.probe.target import parse_target
from cocoa_tornado.probe.verdicts import Report, Status
from demo.__main__ import LINES, load

from ..harness import SECRET, Harness

LINE = LINES[0]


def test_our_own_gateway_passes_every_check_of_speech() -> None:
    async def scenario() -> Report:
        harness = await Harness.start(speech="pocketsphinx://", speech_workers=1)
        target, _ = parse_target(harness.ws_url)
        key = Key("the test", SECRET)
        first, second = minted(key, "first", time.time()), minted(key, "second", time.time())
        session = Session(target, first, HttpPublisher(target), other=second, key=key, audio=load(LINE))
        try:
            # The first of the checks is whether it is ready; its model takes a moment.
            while (await harness.http("GET", "/api/v1/ready")).status != 200:
                await asyncio.sleep(0.05)
            return await run(session, lambda outcome: None)
        finally:
            await harness.stop()

    report = asyncio.run(asyncio.wait_for(scenario(), 120))
    details = {outcome.name: outcome.detail for outcome in report.outcomes}

    assert [(o.name, o.detail) for o in report.outcomes if o.status is Status.FAILED] == []
    assert {o.name for o in report.outcomes if o.status is Status.SKIPPED} == {"group", "idle", "server-ping"}
    assert {check.name for check in AUDIO_CHECKS} <= details.keys()
    assert f'"{LINE.words}"' in details["audio"]
