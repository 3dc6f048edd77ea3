"""Counts the legs of a batch, to know when it is done. Pure."""

from __future__ import annotations

from collections.abc import Callable


class Receipt:
    """Counts the legs of one batch: routing it here, storing it, forwarding it to each of the other servers.

    ``done`` is called exactly once, when the last leg in progress ends. So a caller that begins several legs holds one
    of its own until it has begun them all. If a leg never ends, the batch is never done: the broker redelivers it.
    """

    __slots__ = ("_done", "_under_way")

    def __init__(self, done: Callable[[], None]) -> None:
        self._done: Callable[[], None] | None = done
        self._under_way = 0

    def __repr__(self) -> str:
        return "<Receipt done>" if self._done is None else f"<Receipt {self._under_way} legs under way>"

    def leg(self) -> Callable[[], None]:
        """Begin a leg and return the function that ends it, which is idempotent.

        :raises RuntimeError: the batch is already done
        """
        if self._done is None:
            raise RuntimeError("a leg of a batch that is done")
        self._under_way += 1
        return _Leg(self).end

    def _end_one(self) -> None:
        self._under_way -= 1
        if not self._under_way and self._done is not None:
            done, self._done = self._done, None
            done()


class _Leg:
    __slots__ = ("_receipt",)

    def __init__(self, receipt: Receipt) -> None:
        self._receipt: Receipt | None = receipt

    def end(self) -> None:
        receipt, self._receipt = self._receipt, None
        if receipt is not None:
            receipt._end_one()
