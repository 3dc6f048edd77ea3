"""A byte limit that several owners share. Pure."""

from __future__ import annotations


class ByteBudget:
    """Take bytes before you hold them, and give them back afterwards."""

    __slots__ = ("limit", "taken")

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    def __repr__(self) -> str:
        return f"<ByteBudget {self.taken} of {self.limit} taken>"

    def take(self, count: int) -> bool:
        """Return False, and take nothing, if the limit would be exceeded."""
        if self.taken + count > self.limit:
            return False
        self.taken += count
        return True

    def give_back(self, count: int) -> None:
        self.taken -= count
