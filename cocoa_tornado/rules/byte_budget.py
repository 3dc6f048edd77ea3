"""A bound on bytes that many hold together. Pure."""

from __future__ import annotations


class ByteBudget:
    """Whoever wants to hold bytes takes them from here first, and gives them back."""

    __slots__ = ("limit", "taken")

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    def __repr__(self) -> str:
        return f"<ByteBudget {self.taken} of {self.limit} taken>"

    def take(self, count: int) -> bool:
        """False, and nothing is taken, where that would be more than there is."""
        if self.taken + count > self.limit:
            return False
        self.taken += count
        return True

    def give_back(self, count: int) -> None:
        self.taken -= count
