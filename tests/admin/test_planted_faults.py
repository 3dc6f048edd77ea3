"""Ten faults, planted on a real Kafka and a real Redis, and the one line that ``cocoa admin trace`` begins with for
each: it has to be enough to find the fault. In the console, each is a few clicks from the overview."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cocoa_tornado.presence import redis_scripts
from cocoa_tornado.presence.redis_scripts import META
from testing.browser import CHROMIUM
from testing.chromium import Page, by_text, chromium
from testing.kafka_admin import create_topic, writer
from testing.raw_device import TEXT
from testing.redis_server import RedisServer
from testing.waiting import eventually

from ..harness import Harness
from ..test_gateway_on_kafka import KAFKA_PATIENCE_S, Site, site
from ..test_several_on_kafka import settle
from .conftest import ADMIN_SECRET, admin_token, ask
from .operator import invoke
from .test_traces import nothing_is_written

__all__ = ["site"]

pytestmark = [
    pytest.mark.gen_test(timeout=180),
    pytest.mark.kafka,
    pytest.mark.redis,
    pytest.mark.logs("cocoa.broker", "broker unavailable", optional=True),  # librdkafka, on a busy machine
    pytest.mark.logs("cocoa.presence", "^(lease lost|server fenced)$", optional=True),
]

BOX = 3
PARTITIONS = 3


async def line(gateway: Harness, message_id: str) -> str:
    """The first line that the command prints."""
    env = {"COCOA_ADMIN_TOKEN": admin_token()}
    url = f"http://127.0.0.1:{gateway.port}"
    result = await asyncio.to_thread(invoke, "trace", message_id, "--url", url, env=env)
    return (result.stdout or result.stderr).splitlines()[0]


async def says(gateway: Harness, message_id: str, expected: str) -> str:
    """Ask until the line is as expected: a regular expression."""
    deadline = asyncio.get_running_loop().time() + KAFKA_PATIENCE_S
    while not re.fullmatch(expected, said := await line(gateway, message_id)):
        assert asyncio.get_running_loop().time() < deadline, f"{said!r} is not {expected!r}"
        await asyncio.sleep(0.1)
    print(f"{message_id}: {said}")
    return said


class Console:
    """An operator with a browser, who begins at the overview. Without a Chromium there is none, and nothing is looked
    for."""

    def __init__(self, page: Page | None) -> None:
        self._page = page

    async def finds(self, *way: str, shows: str) -> None:
        """Click a link or a button with each of these texts in turn; then the page shows a text.

        :param way: ``Message id=m1`` fills a field, and presses Enter
        """
        if self._page is None:
            return
        assert len(way) <= 4
        page = self._page
        await page.evaluate("location.hash = '#/devices'")
        await page.until("document.querySelector('h1')?.textContent === 'Devices'")
        await page.evaluate("location.hash = '#/'")
        await page.until_text("Connected devices")
        for step in way:
            name, equals, text = step.partition("=")
            if not equals:
                await page.click(by_text("main a, nav a, button, main label", name))
                continue
            field = f"{by_text('label', name)}?.control"
            await page.until(f"(() => {{ const field = {field}; field?.focus(); field?.select(); return field; }})()")
            await page.call("Input.insertText", text=text)
            await page.press("Enter")
        await page.until_text(shows)
        print(" > ".join(("Overview", *way)), ":", shows)

    async def traces(self, message_id: str, shows: str) -> None:
        await self.finds("Trace", f"Message id={message_id}", shows=shows)


@contextlib.asynccontextmanager
async def console_of(gateway: Harness, folder: Path) -> AsyncIterator[Console]:
    if CHROMIUM is None:
        yield Console(None)
        return
    async with chromium(folder) as browser:
        yield Console(await browser.page(f"http://127.0.0.1:{gateway.port}/#token={admin_token()}"))


class Faults:
    """Plants them, one after another, on the same two gateways.

    :ivar console: of one of them
    """

    console: Console

    def __init__(self, site: Site, redis: RedisServer) -> None:
        self.site, self.redis = site, redis

    async def start(self, name: str) -> Harness:
        return await self.site.start_ready(
            server_name=name,
            presence=self.redis.url,
            mailbox=self.redis.url,
            mailbox_max_messages=BOX,
            admin_jwt_secret=ADMIN_SECRET,
            ping_interval_s=600.0,  # the devices answer none, and a browser may take its time
            ping_timeout_s=600.0,
        )

    async def publish(self, id_: str, device_id: str = "", key: str | None = None, **fields: Any) -> None:
        value = {"id": id_, "text": "hello"} | ({"device_id": device_id} if device_id else {}) | fields
        key_bytes = (device_id if key is None else key).encode() or None
        await self.site.produce([(key_bytes, json.dumps(value).encode())])

    async def a_device_that_never_acknowledges(self, a: Harness, b: Harness) -> None:
        device = await b.raw("mute")
        await self.publish("never-acknowledged", "mute")
        await device.read_until(TEXT)
        await says(a, "never-acknowledged", r"mute: written \(the device has never acknowledged anything\)")
        await self.console.finds("Devices", "mute", shows="Acknowledged\nnever")
        await self.console.finds("Devices", "mute", "never-acknowledged", shows="mute: written (the device has never")

    async def a_full_box(self, a: Harness, b: Harness) -> None:
        for number in range(BOX + 1):
            await self.publish(f"full-box-{number}", "full")
        note = r"dropped from its full box; not connected, and no earlier connection is known"
        await says(a, "full-box-0", rf"full: overflow \({note}\)")
        await self.console.finds("full", shows="Last events")
        await self.console.traces("full-box-0", shows="full: overflow (dropped from its full")

    async def a_group_nobody_is_in(self, a: Harness, b: Harness) -> None:
        await self.publish("empty-group", to={"group": "kitchn"})
        await says(a, "empty-group", "not_connected; no device is in the group kitchn")
        await self.console.traces("empty-group", "no device is in the group kitchn")
        await self.console.finds("Devices", "Group=kitchn", "All members", shows="No members")

    async def a_wrong_key(self, a: Harness, b: Harness) -> None:
        device = await b.raw("doll")
        await self.publish("wrong-key", "doll", key="bear")
        await device.read_until(TEXT)
        key = "its key names neither the device nor the session: the value decides"
        await says(a, "wrong-key", rf"doll: written \(the device has never acknowledged anything\); {key}")
        await self.console.finds(shows="1 record had a key other than the device id or the session id.")
        await self.console.traces("wrong-key", key)

    async def a_wrong_signing_key(self, a: Harness, b: Harness) -> None:
        stranger = await b.upgrade(b.token("stranger", secret="another secret of thirty-two bytes, or more"))
        assert stranger.response.status == 401
        await self.publish("wrong-signature", "stranger")
        note = "not connected, and no earlier connection is known"
        await says(a, "wrong-signature", rf"stranger: waiting \({note}\)")
        await self.console.finds(shows="wrong signature")

    async def a_slow_reader(self, a: Harness, b: Harness) -> None:
        await b.raw("slow")
        with nothing_is_written():
            await self.publish("slow-reader", "slow")
            await says(a, "slow-reader", r"slow: waiting \(connected to b; messages queued for it: 1\)")
            await self.console.finds(shows="Slow readers")
            await self.console.finds("slow", shows="Last events")

    async def a_quarantined_record(self, a: Harness, b: Harness) -> None:
        await self.publish("quarantined", "doll", ttl="60")
        copy = r"its copy is \d/\d of the quarantine"
        await says(a, "quarantined", f"doll: quarantined; The record has an invalid ttl; {copy}")
        await self.console.finds("Show quarantine", shows="invalid field ttl")

    async def an_expired_message(self, a: Harness, b: Harness) -> None:
        await self.publish("expired", "away", ttl=1)
        note = "its ttl of 1 s ended first; not connected, and no earlier connection is known"
        await says(a, "expired", rf"away: expired \({note}\)")
        await self.console.traces("expired", "away: expired (its ttl of 1 s ended first")

    async def a_message_to_the_wrong_topic(self, a: Harness, b: Harness) -> None:
        wrong = f"{self.site.results}s"

        def send() -> None:
            create_topic(self.site.server.bootstrap, wrong)
            with writer(self.site.server.bootstrap) as producer:
                producer.send(wrong, key=b"doll", value=b'{"device_id":"doll","id":"wrong-topic"}').get(10)

        await asyncio.to_thread(send)
        start = "Error: No server remembers this message; no box has it; none of the newest 1 records of the quarantine"
        await says(a, "wrong-topic", f"{start} is it; only the topic {self.site.results} is read")
        await says(a, f"{wrong}/0/0", f"{start} is it; only the topic {self.site.results} is read, not {wrong}")
        await self.console.traces("wrong-topic", f"only the topic {self.site.results} is read.")
        await self.console.traces(f"{wrong}/0/0", f"only the topic {self.site.results} is read, not {wrong}.")

    async def a_rebalance_loop(self, a: Harness, b: Harness) -> None:
        """Nothing is committed, and the partitions move."""
        for gateway in (a, b):
            gateway.gateway.broker._consuming.offsets_to_commit = dict  # type: ignore[attr-defined]  # never any
        device = await a.raw("again")
        names = [f"rebalance-{number}" for number in range(PARTITIONS)]

        async def lines() -> list[str]:
            return [await line(a, name) for name in names]

        for number, name in enumerate(names):
            value = json.dumps({"id": name, "device_id": "again"}).encode()
            await self.site.produce([(b"again", value)], number)
        for _ in names:
            await device.read_until(TEXT)
        await self.start("c")  # it gets a partition, and reads what was not committed
        deadline = asyncio.get_running_loop().time() + KAFKA_PATIENCE_S
        said = await lines()
        while not any(re.search(r"; read \d times, by [abc](, [abc])+$", text) for text in said):
            assert asyncio.get_running_loop().time() < deadline, said
            said = await lines()
        at, moved = next((at, text) for at, text in enumerate(said) if "read" in text)
        print(moved)
        await self.console.traces(names[at], "; read ")
        rows = (await ask(a, "GET", "/top?limit=100")).body["read_again"]
        assert rows
        assert all(row["count"] > 1 and row["servers"][-1] in "abc" for row in rows), rows
        await self.console.finds(shows="Records read again")
        await self.console.finds(rows[0]["id"], shows="; read ")

    async def a_fenced_server(self, a: Harness, b: Harness) -> None:
        await b.raw("held")
        epoch = b.gateway.presence.lease.server
        with self.redis.client() as client:
            while (beat := client.hget("cocoa:{box}:p:servers", epoch)) is not None:
                stamp = b":".join(client.hmget(META, "term", "run")).decode()
                arguments = redis_scripts.fence_arguments(stamp, epoch, int(beat))
                client.eval(redis_scripts.TEXTS["fence"], 1, META, *arguments)
        # Until it notices, it still writes to its devices.
        await eventually(lambda: not b.gateway.hub.is_device_connected("held"))
        await self.publish("fenced", "held")
        note = r"not connected: closed with 1001 by b at [\d:TZ.-]+, which was fenced once"
        await says(a, "fenced", rf"held: waiting \({note}\)")
        await self.console.finds(shows="b lost its lease in Redis 1 time in the last hour, and with it its devices.")


async def test_one_line_or_a_few_clicks_are_enough_to_find_each_of_ten_faults(
    site: Site, redis_server: RedisServer, tmp_path: Path
) -> None:
    settle(redis_server)
    await site.create(PARTITIONS)
    faults = Faults(site, redis_server)
    a, b = await faults.start("a"), await faults.start("b")
    await eventually(lambda: len(a.gateway.presence.others()) == 1, KAFKA_PATIENCE_S)
    async with console_of(a, tmp_path / "profile") as faults.console:
        await faults.a_device_that_never_acknowledges(a, b)
        await faults.a_full_box(a, b)
        await faults.a_group_nobody_is_in(a, b)
        await faults.a_wrong_key(a, b)
        await faults.a_wrong_signing_key(a, b)
        await faults.a_slow_reader(a, b)
        await faults.a_quarantined_record(a, b)
        await faults.an_expired_message(a, b)
        await faults.a_message_to_the_wrong_topic(a, b)
        await faults.a_rebalance_loop(a, b)
        await faults.a_fenced_server(a, b)
