"""A worker without a gateway: it speaks the parent's protocol, and does what the folder in its argument says.

Each start appends a line to ``starts``. A file ``fail-<number>`` has an exit status for the start; ``ignore-drain``
makes it ignore SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from cocoa_tornado.rules.readiness_report import Readiness
from cocoa_tornado.workers.channel import Channel
from cocoa_tornado.workers.place import Place, take_place


async def work(folder: Path, place: Place) -> None:
    stop, reload = asyncio.Event(), asyncio.Event()
    signals: list[int] = []
    # Stays until the process ends, unlike a handler of the loop.
    signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    channel = Channel(place.count, reload.set, stop.set)
    await channel.open(place.channel())

    def metrics() -> str:
        return f"# HELP done x\n# TYPE done counter\ndone {place.number}.0\n"

    def ready() -> Readiness:
        is_ok = not (folder / f"unready-{place.number}").exists()
        return Readiness(False, {"broker": {"ok": is_ok, "state": "ready" if is_ok else "unavailable"}})

    async def ask_at_need() -> None:
        """A file ``ask-<number>`` is a request to this worker; its answer replaces the file."""
        wish = folder / f"ask-{place.number}"
        while True:
            await asyncio.sleep(0.02)
            if wish.exists():
                wish.unlink()
                report, text = await asyncio.gather(channel.ready(ready()), channel.metrics(metrics()))
                part = folder / f"part-{place.number}"
                part.write_text(f"{report.failing} {report.parts.get('workers')}\n{text}", encoding="utf-8")
                part.rename(folder / f"answer-{place.number}")
            if signals and not (folder / "ignore-drain").exists():
                stop.set()
            if reload.is_set():
                reload.clear()
                note(folder / "reloads", place)
                channel.reloaded()

    asking = asyncio.create_task(ask_at_need())
    channel.up(metrics, ready)
    await stop.wait()
    asking.cancel()
    note(folder / "drains", place)
    channel.leave()
    await asyncio.sleep(0)


def note(path: Path, place: Place) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{place.name} {place.port} {os.getpid()}\n")


def main() -> None:
    place = take_place(os.environ)
    assert place is not None
    folder = Path(sys.argv[1])
    note(folder / "starts", place)
    failure = folder / f"fail-{place.number}"
    if failure.exists():
        sys.exit(int(failure.read_text(encoding="utf-8")))
    asyncio.run(work(folder, place))


main()
