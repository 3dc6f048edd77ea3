"""Remembers what has been said already. Pure."""

from __future__ import annotations


class Once:
    """The keys that were seen, the newest of them: one that was forgotten is a new one.

    :param most: keys that are remembered
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: dict[str, None] = {}

    def is_first(self, key: str) -> bool:
        """Whether the key is a new one. It is no longer."""
        is_new = key not in self._seen
        self._seen.pop(key, None)
        self._seen[key] = None
        if len(self._seen) > self._most:
            del self._seen[next(iter(self._seen))]
        return is_new
