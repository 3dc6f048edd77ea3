"""Which users listen on a port of this machine, on Linux."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN: Final = "0A"
_ROOT: Final = 0


def is_of_another_user(port: int) -> bool:
    """Whether another user of this machine listens on a port, on any address. Root, who needs no trick, does not count.
    False where that can't be found out.

    The development key is one user's. A gateway of another user has no use for what it signs, but that user would.
    """
    if not hasattr(os, "geteuid"):
        return False
    return not listening_users(port) <= {os.geteuid(), _ROOT}


def listening_users(port: int) -> frozenset[int]:
    """The ids of the users that listen on a TCP port; empty where the tables can't be read."""
    return frozenset(user for table in TABLES for number, user in _listeners(table) if number == port)


def _listeners(table: Path) -> Iterator[tuple[int, int]]:
    """Port and user of each listener."""
    try:
        lines = table.read_text(encoding="ascii").splitlines()[1:]
        rows = [line.split() for line in lines]
        found = [(int(row[1].rpartition(":")[2], 16), int(row[7])) for row in rows if row[3] == _LISTEN]
    except (OSError, ValueError, IndexError):
        return
    yield from found
