"""How much memory a library may take while it works on a stranger's bytes. Linux; elsewhere there is no such bound."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATM = Path("/proc/self/statm")
_DATA_FIELD = 5  # pages of data and stack


class MemoryBudget:
    """What all calls within :meth:`spending` may take together, beyond what the process has. A call that wants more is
    denied it (malloc returns nothing), as by the limit that the whole process has.

    The limit is the process's, so what other threads take meanwhile counts too, for as long as the call lasts.

    :param max_bytes: of one stream
    """

    def __init__(self, max_bytes: int) -> None:
        self._left_bytes = max_bytes

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What the calls in here take and don't give back counts against the budget."""
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
