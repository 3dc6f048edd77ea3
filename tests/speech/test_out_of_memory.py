"""Workers that the kernel kills for lack of memory: recognized as such, and not replaced at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocoa_tornado.errors import EngineFailed
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.rules.cgroups import hierarchy_of
from cocoa_tornado.speech.machine import read_file
from cocoa_tornado.speech.pool import PoolOptions, WorkerPool
from testing.waiting import eventually

from .test_pool import COMMAND

pytestmark = pytest.mark.gen_test(timeout=120)
LOST = pytest.mark.logs("cocoa.speech", "^worker lost$")

LIMIT_BYTES = 256 << 20


@pytest.fixture
def small_group() -> Iterator[str]:
    """A control group with little memory. Skips the test where none can be made."""
    found = hierarchy_of("memory", read_file)
    top = None if found is None else Path(found.folders[-1])
    name = "memory.max" if found is not None and found.version == 2 else "memory.limit_in_bytes"
    group = (top or Path("/nowhere")) / f"cocoa-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / name).write_text(str(LIMIT_BYTES), encoding="ascii")
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip("no control group with a memory limit can be made here (root, and a writable hierarchy, can)")
    yield str(group)
    group.rmdir()


async def test_a_worker_that_the_kernel_really_kills_is_out_of_memory_and_the_others_go_on_without_it(
    small_group: str,
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.speech.oom_gateway", small_group), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    how = "killed by the kernel, out of memory"
    assert json.loads(output) == [
        f"the speech worker crashed: {how}",
        "word",
        ["out_of_memory", how],
        {"out_of_memory": 1},
        2,  # started
        1,  # left
    ]


@LOST
@pytest.mark.parametrize("kills", [1, 0])
async def test_a_killed_worker_is_out_of_memory_only_if_the_kernel_counts_a_kill(kills: int) -> None:
    counted = [7]  # of others, before
    pool = WorkerPool(PoolOptions("scripted://", command=COMMAND), lambda: counted[0])
    pool.start()
    try:
        await eventually(lambda: pool.status().workers == 1, 30)
        stream = pool.open(AudioFormat(), 60.0)
        await stream.feed(b"word")
        counted[0] += kills
        os.kill(pool.worker_pids()[0], signal.SIGKILL)
        with pytest.raises(EngineFailed):
            await stream.finish()
        assert pool.counters.lost == {"out_of_memory" if kills else "crashed": 1}
        # One kill explains one death.
        await eventually(lambda: pool.status().workers == 1, 30)
        os.kill(pool.worker_pids()[0], signal.SIGKILL)
        await eventually(lambda: sum(pool.counters.lost.values()) == 2)
        assert pool.counters.lost.get("out_of_memory", 0) == kills
    finally:
        await pool.close()


@LOST
async def test_a_worker_that_ends_by_itself_is_never_out_of_memory() -> None:
    counted = iter(range(1000))
    pool = WorkerPool(PoolOptions("scripted://", command=COMMAND), lambda: next(counted))
    pool.start()
    try:
        await eventually(lambda: pool.status().workers == 1, 30)
        stream = pool.open(AudioFormat(), 60.0)
        await stream.feed(b"crash!")
        with pytest.raises(EngineFailed):
            await stream.finish()
        assert pool.counters.lost == {"crashed": 1}
    finally:
        await pool.close()
