"""Deduplicates log lines. Pure."""

from __future__ import annotations


class Once:
    """The most recently seen keys. A key that was forgotten counts as new.

    :param most: keys to remember
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: dict[str, None] = {}

    def is_first(self, key: str) -> bool:
        """Return True the first time, and remember the key."""
        is_new = key not in self._seen
        self._seen.pop(key, None)
        self._seen[key] = None
        if len(self._seen) > self._most:
            del self._seen[next(iter(self._seen))]
        return is_new
