"""One device: its connections, its last events and messages, and its box."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Final

import msgspec

from ..mailboxes.port import LaneRead, Mailbox
from ..rules.audiences import Audience
from ..rules.box import LANES, LaneName, PageLimits, Position
from ..rules.device_events import PER_DEVICE, DeviceEvents
from ..rules.trace_memory import MESSAGES_PER_DEVICE
from ..web.handlers import shown_time, timestamp
from .connected import Connected
from .device_messages import DeviceMessage
from .rows import DeviceRow, Page, Selection
from .servers import Topic
from .traces import Traces

NOBODY: Final = msgspec.Raw(b"null")
"""The user of a device that is not connected."""
MESSAGES_PATIENCE_S: Final = 0.8
"""To search for a device's last messages: less than the asking server waits, so that it gets all the rest anyway."""
MAX_SEARCHES: Final = 4
"""Devices whose messages are searched for at the same time: each search takes up to a millisecond of each turn of the
loop. Others wait, for as long as their patience lasts."""
MAX_READS: Final = 64
"""Pages of a box that are read to weigh it."""


class DeviceQuestion(msgspec.Struct, frozen=True):
    """:ivar messages: how many of its last messages to look for"""

    device_id: str
    messages: int = 0


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """:ivar at: Unix seconds
    :ivar code: of ``refused`` the status, of ``closed`` the close code
    """

    at: float
    server: str
    event: str
    code: int | None


class DeviceAnswer(msgspec.Struct, frozen=True):
    """One server's answer about a device.

    :ivar fenced: how often other servers have declared this one dead since it started, which ended its connections
    :ivar late: the name of the server, if it has not found its messages in time; otherwise ''
    """

    device: DeviceRow | None
    events: tuple[EventRow, ...]
    fenced: int = 0
    messages: tuple[DeviceMessage, ...] = ()
    late: str = ""


class BoxRow(msgspec.Struct, frozen=True, kw_only=True):
    """The messages that wait in a device's box.

    :ivar oldest, newest: timestamps of the records; null if no message waits, and for a time outside the calendar
    :ivar acknowledged: the highest number that the device has acknowledged in each lane; null: it never has
    """

    oldest: str | None
    newest: str | None
    acknowledged: dict[str, int] | None
    messages: int
    bytes: int


DEVICE: Final = Topic("device", DeviceQuestion, DeviceAnswer)


class OneDevice:
    """Answers questions about single devices of this server. IOLoop thread only.

    :param fenced: see :class:`DeviceAnswer`
    """

    def __init__(self, connected: Connected, events: DeviceEvents, traces: Traces, fenced: Callable[[], int]) -> None:
        self._connected, self._events, self._traces, self._fenced = connected, events, traces, fenced
        self._searches = asyncio.Semaphore(MAX_SEARCHES)

    def __repr__(self) -> str:
        return f"<OneDevice {self._connected!r} {self._events!r}>"

    async def answer(self, question: DeviceQuestion) -> DeviceAnswer:
        device_id = question.device_id
        events = tuple(
            EventRow(at=at, server=self._connected.server, event=kind, code=code or None)
            for at, kind, code in self._events.of(device_id)
        )
        messages = await self._messages(device_id, min(question.messages, MESSAGES_PER_DEVICE))
        late = self._connected.server if messages is None else ""
        return DeviceAnswer(self._connected.row_of(device_id), events, self._fenced(), messages or (), late)

    async def _messages(self, device_id: str, most: int) -> tuple[DeviceMessage, ...] | None:
        """Its last messages; None: they were not found in time."""
        if most <= 0:
            return ()
        try:
            async with asyncio.timeout(MESSAGES_PATIENCE_S), self._searches:
                return await self._traces.last_messages(device_id, most)
        except TimeoutError:
            return None


def last_events(answers: Iterable[DeviceAnswer]) -> list[dict[str, object]]:
    """The last events of a device over all servers, oldest first."""
    events = sorted((event for answer in answers for event in answer.events), key=attrgetter("at"))
    return [
        {"at": timestamp(event.at), "server": event.server, "event": event.event, "code": event.code}
        for event in events[-PER_DEVICE:]
    ]


async def weigh(mailbox: Mailbox, device_id: str) -> BoxRow:
    """Look into a device's box. What waits is what the device has not acknowledged, or has never been sent.

    :raises MailboxError: the mailbox is unavailable
    """
    box = await mailbox.look(device_id)
    times: list[int] = []
    sizes: list[int] = []
    for name in LANES:
        lane = box.lane(name)
        for messages in await _pages(mailbox, device_id, name, lane.confirmed):
            times += [stored for stored, _ in messages]
            sizes += [size for _, size in messages]
    stamps = [stamp for stamp in times if stamp > 0]
    return BoxRow(
        oldest=shown_time(min(stamps)) if stamps else None,
        newest=shown_time(max(stamps)) if stamps else None,
        acknowledged={name: box.lane(name).acked or 0 for name in LANES} if box.has_acked else None,
        messages=len(sizes),
        bytes=sum(sizes),
    )


async def _pages(mailbox: Mailbox, device_id: str, lane: LaneName, after: int) -> Sequence[Sequence[tuple[int, int]]]:
    """Timestamp and size of each message of a lane."""
    pages = []
    for _ in range(MAX_READS):
        (page,) = await mailbox.read(device_id, [LaneRead(lane, after, PageLimits())])
        if not page.messages:
            break
        pages.append([(message.timestamp_ms, len(message.payload)) for message in page.messages])
        after = page.messages[-1].number
    return pages


async def members_page(mailbox: Mailbox, audience: Audience, selection: Selection) -> Page:
    """A page of the members that the mailbox knows, connected or not.

    :raises MailboxError: the mailbox is unavailable
    """
    device_ids = await mailbox.members(audience, selection.after, selection.limit + 1)
    rows = [
        DeviceRow(device_id=device_id, user_id=NOBODY, groups=(), connections=())
        for device_id in device_ids[: selection.limit]
    ]
    return Page(tuple(rows), len(device_ids) > selection.limit)


async def empty(mailbox: Mailbox, device_id: str) -> int:
    """Remove all messages from a device's box; return how many were removed.

    Messages that are already queued for its connection are still sent. For a device that never acknowledges, the
    messages are marked as written. Acknowledging them for it would make it count as a device that acknowledges, and
    each later message would be sent again on every connection.

    :raises MailboxError: the mailbox is unavailable
    """
    waiting = (await weigh(mailbox, device_id)).messages
    box = await mailbox.look(device_id)
    everything = Position(box.normal.last, box.epoch, box.high.last)
    # Either mark is stored within a second, and every later look includes it.
    if box.has_acked:
        mailbox.acknowledge(device_id, everything)
    else:
        mailbox.written(device_id, everything)
    return waiting
