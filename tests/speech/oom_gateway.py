"""A pool in a control group with little memory; run as a process of its own, for tests.

``python -m tests.speech.oom_gateway FOLDER`` moves itself into the group, feeds one worker something that makes it eat
all the memory there is, and prints what the pool logs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path

from cocoa_tornado.errors import EngineFailed
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.speech.pool import PoolOptions, WorkerPool
from testing.waiting import eventually

COMMAND = (sys.executable, "-m", "tests.speech.scripted_worker")


async def main() -> None:
    lines: list[dict[str, object]] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append({"event": record.getMessage(), **vars(record)})  # type: ignore[method-assign]
    logging.getLogger("cocoa.speech").addHandler(handler)
    pool = WorkerPool(PoolOptions("scripted://", workers=2, command=COMMAND))
    pool.start()
    await eventually(lambda: pool.status().workers == 2, 60)
    stream = pool.open(AudioFormat(), 60.0)
    error = ""
    try:
        await stream.feed(b"hungry")
        await stream.finish()
    except EngineFailed as failed:
        error = str(failed)
    other = pool.open(AudioFormat(), 60.0)
    await other.feed(b"word")
    text = (await other.finish()).text
    (lost,) = [(line["reason"], line["how"]) for line in lines if line["event"] == "worker lost"]
    status, counters = pool.status(), pool.counters
    print(json.dumps([error, text, lost, counters.lost, counters.started, status.workers]))
    await pool.close()


if __name__ == "__main__":
    Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    asyncio.run(main())
