"""Reads what this process may use of the machine; ``rules/cgroups.py`` knows what the files mean. Any thread."""

from __future__ import annotations

import os
from pathlib import Path

from ..rules.cgroups import cpu_quota, memory_limit, oom_kills
from ..rules.worker_count import Machine


def read_file(path: str) -> str | None:
    """A file of the kernel's; None where there is none, or none that may be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def this_machine() -> Machine:
    """As it is now: limits of containers may change while they run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores, cpu_quota(read_file), memory_limit(read_file))


def count_oom_kills() -> int:
    """So far, in this process's control group; 0 where nobody counts."""
    return oom_kills(read_file)
