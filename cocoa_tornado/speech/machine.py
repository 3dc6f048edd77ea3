"""Reads this process's resource limits; ``rules/cgroups.py`` parses the files. Thread-safe."""

from __future__ import annotations

import os
from pathlib import Path

from ..rules.cgroups import cpu_quota, memory_limit, oom_kills
from ..rules.worker_count import Machine


def read_file(path: str) -> str | None:
    """Read a kernel file; None if it does not exist or is not readable."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def this_machine() -> Machine:
    """The current limits: those of a container may change while it runs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores, cpu_quota(read_file), memory_limit(read_file))


def count_oom_kills() -> int:
    """OOM kills so far in this process's control group; 0 if there is no counter."""
    return oom_kills(read_file)
