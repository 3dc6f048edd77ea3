"""Answers traces from this server's memory, and finds out what has happened to the messages since."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from ..errors import MailboxError
from ..hub import Hub
from ..routing.address import Address, Devices, Group, User
from ..rules.records import Record
from ..rules.trace_memory import Found, Outcome, TraceMemory
from .device_messages import DeviceMessage, message_of
from .requests import user_text
from .trace_answers import MAX_DEVICES, TraceAnswer, TraceDevice, TraceQuestion, TraceStep, better
from .trace_boxes import REPLACED, BoxSearch, Sought, ttl_note

MAX_RECORDS: Final = 8
"""Records with one id, such as a record that was read twice: no more of them are shown."""
BOX_PATIENCE_S: Final = 0.7
"""The time limit for the boxes; later outcomes are unknown."""
AT_ONCE: Final = 50
"""Boxes that are looked into at the same time, and devices that are judged in one turn of the loop."""
WRONG_KEY: Final = "its key names neither the device nor the session: the value decides"

_MEANINGS: Final[Mapping[Outcome, str]] = {
    "overflow": "dropped from a full queue",
    "collapsed": REPLACED,
    "slow_consumer": "its connection was closed with 1013: the device reads too slowly",
    "superseded": "forwarded to a server that no longer held the device",
    "fault": "an internal error, or a lost server: see the log",
}
"""Notes on outcomes that this server has noted."""


class Traces:
    """Traces of messages from this server's memory. IOLoop thread only; long work is divided between turns of the loop.

    :param boxes: None without a mailbox
    """

    def __init__(self, memory: TraceMemory, hub: Hub, boxes: BoxSearch | None, name: Callable[[], str]) -> None:
        self._memory, self._hub, self._boxes, self._name = memory, hub, boxes, name

    def __repr__(self) -> str:
        return f"<Traces {self._memory!r}>"

    async def answer(self, question: TraceQuestion) -> TraceAnswer:
        records: list[Found] = []
        for found in self._memory.search(question.id):
            if found is None:
                await asyncio.sleep(0)
            else:
                records.append(found)
                if len(records) == MAX_RECORDS:
                    break
        if not records:
            return TraceAnswer()
        outcomes, notes, others = await self._outcomes(records)
        payload = records[-1].payload
        steps: list[TraceStep] = []
        for found in records:
            steps += self._steps(found, outcomes)
            await asyncio.sleep(0)  # it may be for 100,000 devices
        return TraceAnswer(
            records=len(records),
            steps=tuple(steps),
            devices=tuple(
                TraceDevice(device_id, outcome, notes.get(device_id, "")) for device_id, outcome in outcomes.items()
            ),
            others=others,
            length=len(payload),
            text=payload.decode() if question.with_text else None,
            notes=tuple(_notes(records, outcomes)),
            is_partial=not outcomes and any(self._has_other_recipients(found) for found in records),
        )

    async def last_messages(self, device_id: str, most: int) -> tuple[DeviceMessage, ...]:
        """The last messages that a device got, or should have got, as far as this server remembers them; the newest
        first."""
        records: list[Found] = []
        for found in self._memory.of_device(device_id, most):
            if found is None:
                await asyncio.sleep(0)
            else:
                records.append(found)
        became = await asyncio.gather(*(self._outcomes([found], [device_id]) for found in records))
        return tuple(
            message_of(found, outcomes.get(device_id), notes.get(device_id, ""))
            for found, (outcomes, notes, _) in zip(records, became, strict=True)
        )

    def _has_other_recipients(self, found: Found) -> bool:
        """Whether a record that the mailbox fans out has recipients that are unknown here: it was recorded earlier, or
        is yet to be."""
        record = found.batch.records[found.at]
        if self._boxes is None or isinstance(record.address, str | Devices):
            return False
        return not found.is_fanned_out

    def _steps(self, found: Found, outcomes: Mapping[str, Outcome | None]) -> Iterable[TraceStep]:
        batch, me = found.batch, self._name()
        record, recipients = batch.records[found.at], found.recipients()
        if not batch.sender:
            if record.timestamp_ms:
                yield TraceStep(record.timestamp_ms / 1000, None, "produced")
            yield TraceStep(batch.at_s, me, "read")
            if recipients:
                yield TraceStep(batch.at_s, me, "addressed")
        if batch.stored_at_s and found.stored():
            yield TraceStep(batch.stored_at_s, me, "stored")
        for at_s in sorted({at_s for at_s, _, _ in found.forwarded()}):
            yield TraceStep(at_s, me, "forwarded")
        known = {outcomes.get(device_id) for device_id in recipients}
        for step in ("written", "acknowledged"):
            if step in known or (step == "written" and "acknowledged" in known):
                yield TraceStep(None, me, step)

    # -- devices

    async def _outcomes(
        self, records: Sequence[Found], only: Sequence[str] | None = None
    ) -> tuple[dict[str, Outcome | None], dict[str, str], int]:
        """Return the outcome of each known device, notes on some, and the number of other devices.

        :param only: the devices that are asked for; None: all recipients
        """
        outcomes: dict[str, Outcome | None] = {}
        notes: dict[str, str] = {}
        others: set[str] = set()
        in_boxes: dict[str, tuple[Found, int | None]] = {}
        for found in records:
            noted, whole, stored, away = found.outcomes(), found.whole(), found.stored(), _away(found)
            for at, device_id in enumerate(found.recipients() if only is None else only):
                if device_id not in outcomes and len(outcomes) == MAX_DEVICES:
                    others.add(device_id)
                    continue
                outcome = noted.get(device_id, whole)
                if outcome is not None:
                    notes[device_id] = _note_on(outcome, found.batch.records[found.at])
                elif device_id in stored:
                    in_boxes[device_id] = (found, stored[device_id])
                elif self._is_in_box(found):  # it was stored when the record was first read
                    in_boxes.setdefault(device_id, (found, None))
                elif device_id not in away:
                    outcome = self._outcome_here(found, device_id)
                outcomes[device_id] = better(outcomes.get(device_id), outcome)
                if at % AT_ONCE == AT_ONCE - 1:
                    await asyncio.sleep(0)
        if self._boxes is not None and in_boxes:
            await self._look_into_boxes(self._boxes, in_boxes, outcomes, notes)
        return outcomes, {name: note for name, note in notes.items() if note}, len(others)

    def _is_in_box(self, found: Found) -> bool:
        """Whether the mailbox has taken a record, now or earlier."""
        record = found.batch.records[found.at]
        return self._boxes is not None and bool(found.batch.stored_at_s) and not _is_transient(record)

    def _outcome_here(self, found: Found, device_id: str) -> Outcome | None:
        """The outcome of a message that is in no box and was sent to connections of this server, if it has no note.
        None: it is in flight."""
        record = found.batch.records[found.at]
        if not found.batch.routed_at_s or (self._boxes is not None and not _is_transient(record)):
            return None
        clients = self._hub.clients_of(device_id)
        return "waiting" if any(each.is_queued(found.payload, record.timestamp_ms) for each in clients) else "written"

    async def _look_into_boxes(
        self,
        boxes: BoxSearch,
        stored: Mapping[str, tuple[Found, int | None]],
        outcomes: dict[str, Outcome | None],
        notes: dict[str, str],
    ) -> None:
        device_ids = list(stored)
        try:
            async with asyncio.timeout(BOX_PATIENCE_S):
                for first in range(0, len(device_ids), AT_ONCE):
                    some = device_ids[first : first + AT_ONCE]
                    looks = (boxes.look(device_id, *_sought(*stored[device_id])) for device_id in some)
                    for device_id, found in zip(some, await asyncio.gather(*looks), strict=True):
                        if better(outcomes[device_id], found.outcome) == found.outcome:
                            outcomes[device_id], notes[device_id] = found.outcome, found.note
        except (MailboxError, TimeoutError):
            return


def _sought(found: Found, number: int | None) -> tuple[Sought, int | None]:
    record = found.batch.records[found.at]
    return Sought(found.payload, record.timestamp_ms, found.batch.at_s * 1000, record.options), number


def _is_transient(record: Record | object) -> bool:
    """Whether the message is transient; one that another server has forwarded, and no mailbox has, is."""
    return not isinstance(record, Record) or record.is_transient


def _away(found: Found) -> frozenset[str]:
    """The devices whose messages were forwarded, and whose outcomes the servers that hold them know."""
    return frozenset(device_id for _, _, device_id in found.forwarded() if device_id is not None)


def _note_on(outcome: Outcome, record: Record | object) -> str:
    if outcome == "expired" and isinstance(record, Record) and record.options is not None and record.options.ttl_s:
        return ttl_note(record.options)
    return _MEANINGS.get(outcome, "")


def _notes(records: Iterable[Found], outcomes: Mapping[str, Outcome | None]) -> Iterable[str]:
    for found in records:
        record = found.batch.records[found.at]
        if not isinstance(record, Record):
            continue
        if not record.key_agrees:
            yield WRONG_KEY
        if not outcomes and not isinstance(record.address, str | Devices):
            yield f"no device is {audience_text(record.address)}"


def audience_text(address: Address) -> str:
    """An audience, for people: in "no device is ..."."""
    if isinstance(address, User):
        return f"of the user {user_text(address.user_id)}"
    return f"in the group {address.name}" if isinstance(address, Group) else "connected"
