"""Limits the memory of a library while it processes untrusted bytes. Linux only; elsewhere there is no limit."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATM = Path("/proc/self/statm")
_DATA_FIELD = 5  # pages of data and stack


class MemoryBudget:
    """Limits what all calls within :meth:`spending` may allocate together, beyond what the process has. A call that
    wants more gets no memory (malloc returns NULL), as under a limit on the process.

    The limit applies to the process, so memory that other threads take during the call counts too.

    :param max_bytes: per stream
    """

    def __init__(self, max_bytes: int) -> None:
        self._left_bytes = max_bytes

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count what the calls in this block allocate and don't free."""
        if sys.platform != "linux":
            yield
            return
        before = _used_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = before + max(0, self._left_bytes)
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if soft < 0 else min(wanted, soft), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
            self._left_bytes -= max(0, _used_bytes() - before)


def _used_bytes() -> int:
    return int(_STATM.read_text().split()[_DATA_FIELD]) * resource.getpagesize()
