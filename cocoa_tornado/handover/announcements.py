"""A worker's announcements of its devices to its siblings, and which of their records it takes. Pure.

Each device that arrives or leaves has a number. A sibling repeats the latest number that it has heard of with the
records that it hands over, so a record that was assigned before its device left, and came back, is returned like those
before it: the records of a device are taken up to one of them, and all later ones are returned, until the sibling has
heard that the device is here again.

While this worker has no valid lease, it returns all records, and then those that were assigned before the sibling has
heard that it has one again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf


class Announcements:
    """The announcements of one worker to all siblings. Not thread-safe."""

    def __init__(self) -> None:
        self._latest = 0
        self._since: dict[str, int] = {}
        self._taken_since = 0.0  # as a number
        self._news: dict[int, dict[str, bool]] = {}  # by sibling: whether these devices are here

    def __repr__(self) -> str:
        return f"<Announcements {self._latest} of {len(self._since)} devices>"

    def up(self, sibling: int) -> None:
        """A sibling has connected, and knows no devices yet."""
        self._news[sibling] = dict.fromkeys(self._since, True)

    def down(self, sibling: int) -> None:
        self._news.pop(sibling, None)

    def arrived(self, device_id: str) -> None:
        self._latest += 1
        self._since[device_id] = self._latest
        for news in self._news.values():
            news[device_id] = True

    def left(self, device_id: str) -> None:
        self._latest += 1
        self._since.pop(device_id, None)
        for news in self._news.values():
            news[device_id] = False

    def suspend(self) -> None:
        """From now on, return all records to their senders."""
        self._taken_since = inf

    def resume(self) -> None:
        """Take records again. All siblings are to hear the latest number."""
        self._latest += 1
        self._taken_since = self._latest

    def take(self, sibling: int) -> tuple[int, list[str], list[str]]:
        """The latest number, the devices that have arrived, and those that have left, since the last call."""
        news, self._news[sibling] = self._news[sibling], {}
        here = [device_id for device_id, is_here in news.items() if is_here]
        return self._latest, here, [device_id for device_id, is_here in news.items() if not is_here]

    def has_news(self, sibling: int) -> bool:
        return bool(self._news.get(sibling))

    def to_return(self, device_ids: Sequence[str], seen: int) -> list[int]:
        """The positions of the devices whose records are to be returned.

        :param seen: the latest number that the sibling had heard of when it assigned the records
        """
        if seen < self._taken_since:
            return list(range(len(device_ids)))
        since = self._since
        return [at for at, device_id in enumerate(device_ids) if since.get(device_id, inf) > seen]
