"""Looks for a message in the boxes, for operators. IOLoop thread only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from ..mailboxes.port import LaneRead, Mailbox, lane_of
from ..rules.addressing import Options
from ..rules.box import Box, Lane, LaneName, PageLimits
from ..rules.trace_memory import Outcome, outcome_in_box

MAX_READS: Final = 64
"""Pages of a box that are searched for a message whose number is not known."""


class Sought(NamedTuple):
    """The known facts about a message.

    :ivar payload: None: only its ``id`` is known
    :ivar timestamp_ms: of its record; 0: it has none
    :ivar read_ms: when it was read or stored, Unix milliseconds
    """

    payload: bytes | None
    timestamp_ms: int
    read_ms: float
    options: Options | None = None


class InBox(NamedTuple):
    """What a box shows about a message.

    :ivar note: an explanation of the outcome, for people
    :ivar payload: of the message, if the box has it and it was not known
    """

    outcome: Outcome | None
    note: str = ""
    payload: bytes | None = None


class BoxSearch:
    """Looks into single boxes.

    :param mailbox_ttl_s: how long the mailbox keeps a message
    :param wall_clock: Unix seconds
    """

    def __init__(self, mailbox: Mailbox, mailbox_ttl_s: float, wall_clock: Callable[[], float]) -> None:
        self.mailbox, self._ttl_s, self._wall_clock = mailbox, mailbox_ttl_s, wall_clock

    def __repr__(self) -> str:
        return f"<BoxSearch {self.mailbox!r}>"

    async def look(
        self, device_id: str, sought: Sought, number: int | None = None, lane: LaneName | None = None
    ) -> InBox:
        """Return the outcome of a stored message.

        :param number: in its lane; None: it is not known, and searched for
        :param lane: None: the lane of its options
        :raises MailboxError: the mailbox is unavailable
        """
        lane = lane or lane_of(sought.options)
        box = await self.mailbox.look(device_id)
        if number is None:
            number = await self._number(device_id, sought, box, lane)
        if number is None:
            return self._absent(box.lane(lane), sought)
        (page,) = await self.mailbox.read(device_id, [LaneRead(lane, number - 1, PageLimits(1))])
        found = next((message for message in page.messages if message.number == number), None)
        outcome = outcome_in_box(
            box.lane(lane),
            number,
            is_in_box=found is not None,
            has_expired=self._has_expired(sought),
            may_collapse=sought.payload is None or (sought.options or Options()).collapse_key is not None,
        )
        note = self._note(outcome, box, sought)
        return InBox(outcome, note, found.payload if found is not None and sought.payload is None else None)

    async def _number(self, device_id: str, sought: Sought, box: Box, name: LaneName) -> int | None:
        """Its number, if the box has it, or remembers its ``id``."""
        if sought.options is not None and sought.options.id is not None:
            named = (await self.mailbox.find_id(sought.options.id, 0, device_id)).found
            if named and named[0].number and named[0].lane == name:
                return named[0].number
        after = box.lane(name).gone
        for _ in range(MAX_READS):
            (page,) = await self.mailbox.read(device_id, [LaneRead(name, after, PageLimits())])
            for message in page.messages:
                if message.timestamp_ms == sought.timestamp_ms and message.payload == sought.payload:
                    return message.number
            if not page.messages:
                break
            after = page.messages[-1].number
        return None

    def _absent(self, lane: Lane, sought: Sought) -> InBox:
        """The box does not have it, and does not remember its number."""
        if lane.last == lane.base:
            return InBox(None, "nothing is in its box, or was")
        if lane.acked is not None and lane.acked >= lane.gone:
            return InBox("acknowledged", "all that has left its box was acknowledged")
        if lane.acked is None and lane.written >= lane.gone > lane.base:
            return InBox("written", NEVER_ACKNOWLEDGES)
        if self._has_expired(sought):
            return InBox("expired", self._lifetime(sought))
        if lane.acked is None and lane.gone > lane.base:
            return InBox("overflow", "it is not in the box any more, and the device never acknowledges")
        return InBox(None, "it is not in the box: acknowledged, or dropped from it")

    def _note(self, outcome: Outcome, box: Box, sought: Sought) -> str:
        if outcome == "written":
            return "not acknowledged: the device has acknowledged others" if box.has_acked else NEVER_ACKNOWLEDGES
        if outcome == "expired":
            return self._lifetime(sought)
        return {"overflow": "dropped from its full box", "collapsed": REPLACED, "not_connected": LEFT}.get(outcome, "")

    def _lifetime(self, sought: Sought) -> str:
        if sought.options is not None and sought.options.ttl_s:
            return ttl_note(sought.options)
        return f"the mailbox keeps messages for {self._ttl_s:g} s"

    def _has_expired(self, sought: Sought) -> bool:
        now_ms = self._wall_clock() * 1000
        if sought.options is not None and sought.options.ttl_s:
            return sought.options.expires_ms(sought.timestamp_ms, sought.read_ms) < now_ms
        return sought.read_ms + self._ttl_s * 1000 < now_ms


NEVER_ACKNOWLEDGES: Final = "the device has never acknowledged anything"
REPLACED: Final = "a newer message with its collapse_key has replaced it"
LEFT: Final = "the device is no longer in the group, or of the user, that it was for"


def ttl_note(options: Options) -> str:
    return f"its ttl of {options.ttl_s} s ended first"
