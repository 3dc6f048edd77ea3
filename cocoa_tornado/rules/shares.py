"""Bounds what each holder uses at the same time, so that one of them does not use up what all share. Pure."""

from __future__ import annotations


class Shares:
    """Counts by holder. A holder that uses nothing takes no memory.

    :param most: how much each may use at the same time
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._used: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Shares {self._used}>"

    def __len__(self) -> int:
        """The number of holders that use something."""
        return len(self._used)

    def take(self, holder: str) -> bool:
        """Count one more for this holder, unless it has its share; return whether it was counted."""
        used = self._used.get(holder, 0)
        if used >= self._most:
            return False
        self._used[holder] = used + 1
        return True

    def give_back(self, holder: str) -> None:
        """Undo one successful :meth:`take`."""
        used = self._used.pop(holder)
        if used > 1:
            self._used[holder] = used - 1
