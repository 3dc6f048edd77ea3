"""The rows of connected devices in the admin API, and merging the pages of several servers. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

MAX_PAGE: Final = 1_000
MAX_PAGE_BYTES: Final = 512 * 1024
"""Of the rows that one server sends in one answer, about: the next page has the others."""


class ConnectionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One connection.

    :ivar server: the name of the server that holds it
    :ivar generation: ``<term>.<number>``, as in the header ``cocoa.generation``
    :ivar ip: of the device, behind trusted proxies too
    :ivar version: the device's firmware
    :ivar rtt_ms: of the last ping; null before the first pong
    :ivar queue: messages that the socket has not taken yet
    :ivar last_activity: when the device last sent something, or took a byte
    """

    server: str
    generation: str
    connected_at: str
    ip: str
    version: str
    rtt_ms: float | None
    queue: int
    last_activity: str


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One device with its connections. A member that is not connected has none, and its user and groups are unknown.

    :ivar user_id: JSON: an integer or a string; null for a member that is not connected
    """

    device_id: str
    user_id: msgspec.Raw
    groups: tuple[str, ...]
    connections: tuple[ConnectionRow, ...]


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """The connected devices that a page has.

    :ivar user: JSON text of the user id: ``99`` and ``"99"`` are two users
    :ivar after: only devices behind this one, by the bytes of their ids
    """

    user: str | None = None
    group: str | None = None
    prefix: str = ""
    after: str = ""
    limit: int = 100


class Page(msgspec.Struct, frozen=True):
    """One server's devices.

    :ivar more: there are others behind the last one
    :ivar connected: how many devices with connections to this server fit, over all pages; None: it does not say
    """

    devices: tuple[DeviceRow, ...]
    more: bool
    connected: int | None = None


class FirstIds:
    """The first ``limit`` + 1 ids of a page, in order, among all that are added.

    The order of strings is that of their code points, which is the order of their bytes in UTF-8.

    :ivar fitting: how many ids begin with the selection's prefix, those of other pages included
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self.ids: list[str] = []
        self.fitting = 0

    def add(self, device_ids: Sequence[str]) -> None:
        """Add some of the ids."""
        after, prefix = self._selection.after, self._selection.prefix
        if prefix:
            device_ids = [device_id for device_id in device_ids if device_id.startswith(prefix)]
        self.fitting += len(device_ids)
        later = [device_id for device_id in device_ids if device_id > after]
        self.ids = heapq.nsmallest(self._selection.limit + 1, [*self.ids, *later])


def page_of(
    device_ids: Sequence[str], limit: int, row_of: Callable[[str], DeviceRow | None], connected: int | None = None
) -> Page:
    """Make the rows of a page, as long as they are not too many bytes.

    :param device_ids: in order, one more than ``limit`` if there are others
    :param row_of: None: the device has gone meanwhile
    :param connected: see :class:`Page`
    """
    rows: list[DeviceRow] = []
    size = 0
    for device_id in device_ids[:limit]:
        row = row_of(device_id)
        if row is not None:
            rows.append(row)
            size += len(msgspec.json.encode(row))
        if size >= MAX_PAGE_BYTES:
            return Page(tuple(rows), device_id != device_ids[-1], connected)
    return Page(tuple(rows), len(device_ids) > limit, connected)


def merge(pages: Iterable[Page], limit: int) -> tuple[list[DeviceRow], str | None]:
    """Return the first ``limit`` devices of all servers, and what the next page comes after; None if there is none.

    A server with more devices than it has sent may have some that come before another's last ones: these belong to a
    later page.
    """
    pages = list(pages)
    by_id: dict[str, list[DeviceRow]] = {}
    for page in pages:
        for row in page.devices:
            by_id.setdefault(row.device_id, []).append(row)
    horizons = [page.devices[-1].device_id for page in pages if page.more and page.devices]
    known = sorted(device_id for device_id in by_id if not horizons or device_id <= min(horizons))
    rows = [_joined(by_id[device_id]) for device_id in known[:limit]]
    return rows, rows[-1].device_id if rows and (horizons or len(known) > limit) else None


def connected(pages: Iterable[Page]) -> int | None:
    """How many connected devices fit, over all servers. A device that several servers have connections of counts at
    each. None: a server does not say."""
    total = 0
    for page in pages:
        if page.connected is None:
            return None
        total += page.connected
    return total


def _joined(rows: Sequence[DeviceRow]) -> DeviceRow:
    """Merge the rows of a device that is connected to several servers. Its newest token decides the fields."""
    if len(rows) == 1:
        return rows[0]
    newest = max(rows, key=lambda row: max((_age_of(each) for each in row.connections), default=(-1, -1)))
    connections = sorted((each for row in rows for each in row.connections), key=_age_of)
    return DeviceRow(
        device_id=newest.device_id,
        user_id=newest.user_id,
        groups=newest.groups,
        connections=tuple(connections),
    )


def _age_of(connection: ConnectionRow) -> tuple[int, int]:
    term, _, number = connection.generation.partition(".")
    return (int(term), int(number)) if term.isdecimal() and number.isdecimal() else (-1, -1)
