"""When a batch is done: its legs, counted. Pure."""

from __future__ import annotations

from collections.abc import Callable


class Receipt:
    """Counts the legs of one batch: routing it here, storing it, forwarding it to each of the other servers.

    ``done`` is called once, at the moment when the last leg that has begun ends, and never again. So whoever begins
    legs holds one of its own until it has begun them all. A batch of which a leg never ends is never done: the broker
    keeps it, and hands it over again.
    """

    __slots__ = ("_done", "_under_way")

    def __init__(self, done: Callable[[], None]) -> None:
        self._done: Callable[[], None] | None = done
        self._under_way = 0

    def __repr__(self) -> str:
        return "<Receipt done>" if self._done is None else f"<Receipt {self._under_way} legs under way>"

    def leg(self) -> Callable[[], None]:
        """Begin a leg; what is returned ends it, and ends nothing when it is called again.

        :raises RuntimeError: the batch is done, so that nothing can be waited for any more
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
