"""Waiting for what a test expects to happen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def eventually(condition: Callable[[], bool], patience_s: float = 30.0) -> None:
    """Return as soon as the condition holds; fail the test if it does not within ``patience_s`` seconds."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {patience_s} s: {condition}"
        await asyncio.sleep(0.01)
