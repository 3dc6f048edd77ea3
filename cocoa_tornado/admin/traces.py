"""What became of a message: what one server remembers of it, and the answer that all servers together make."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from ..errors import MailboxError
from ..hub import Hub
from ..mailboxes.port import LaneRead, Mailbox, lane_of
from ..rules.addressing import Options
from ..rules.box import PageLimits
from ..rules.trace_memory import Found, Outcome, TraceMemory, outcome_in_box
from .servers import Topic

MAX_DEVICES: Final = 1_000
MAX_RECORDS: Final = 8
"""Records with one id, such as a record that was read twice: no more of them are shown."""
BOX_PATIENCE_S: Final = 0.7
"""What the boxes do not answer within this time is not known."""
AT_ONCE: Final = 50
"""Boxes that are looked into at the same time, and devices that are judged in one turn of the loop."""
OTHERS: Final = "others"
"""In ``counts``: devices beyond the first 1,000 of a server."""

_RANK: Final[Mapping[Outcome | None, int]] = {
    None: 0,
    "not_connected": 1,
    "superseded": 1,
    "waiting": 3,
    "written": 4,
    "acknowledged": 5,
}
"""Where servers know different things of a device. All other outcomes are between the first and ``waiting``."""


class TraceQuestion(msgspec.Struct, frozen=True):
    """:ivar with_text: the asker may see the message"""

    id: str
    with_text: bool = False


class TraceStep(msgspec.Struct, frozen=True):
    """:ivar at: Unix seconds; None: the time is not known
    :ivar server: None: it was outside of the servers
    """

    at: float | None
    server: str | None
    step: str


class TraceDevice(msgspec.Struct, frozen=True):
    """:ivar outcome: None: nothing is known of it yet, or any more"""

    device_id: str
    outcome: Outcome | None


class TraceAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What one server remembers.

    :ivar records: how many records it has found; 0: none
    :ivar others: how many devices are not in :attr:`devices`
    :ivar length: of the message, in bytes
    :ivar text: the message, if the asker may see it
    """

    records: int = 0
    steps: tuple[TraceStep, ...] = ()
    devices: tuple[TraceDevice, ...] = ()
    others: int = 0
    length: int = 0
    text: str | None = None


TRACE: Final = Topic("trace", TraceQuestion, TraceAnswer)


class Traces:
    """What this server remembers of messages. IOLoop thread only; long work is divided between turns of the loop.

    :param mailbox_ttl_s: how long the mailbox keeps a message
    """

    def __init__(
        self, memory: TraceMemory, hub: Hub, mailbox: Mailbox | None, mailbox_ttl_s: float, name: Callable[[], str]
    ) -> None:
        self._memory, self._hub, self._mailbox, self._name = memory, hub, mailbox, name
        self._mailbox_ttl_s = mailbox_ttl_s

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
        outcomes, others = await self._outcomes(records)
        payload = records[-1].payload
        return TraceAnswer(
            records=len(records),
            steps=tuple(step for found in records for step in self._steps(found, outcomes)),
            devices=tuple(TraceDevice(device_id, outcome) for device_id, outcome in outcomes.items()),
            others=others,
            length=len(payload),
            text=payload.decode() if question.with_text else None,
        )

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

    async def _outcomes(self, records: Sequence[Found]) -> tuple[dict[str, Outcome | None], int]:
        """What is known of each device, and of how many others there is nothing to say here."""
        outcomes: dict[str, Outcome | None] = {}
        others: set[str] = set()
        in_boxes: dict[str, tuple[Found, int]] = {}
        for found in records:
            noted, whole, stored, away = found.outcomes(), found.whole(), found.stored(), _away(found)
            for at, device_id in enumerate(found.recipients()):
                if device_id not in outcomes and len(outcomes) == MAX_DEVICES:
                    others.add(device_id)
                    continue
                outcome = noted.get(device_id, whole)
                if outcome is None and device_id in stored:
                    in_boxes[device_id] = (found, stored[device_id])
                elif outcome is None and device_id not in away:
                    outcome = self._outcome_here(found, device_id)
                outcomes[device_id] = better(outcomes.get(device_id), outcome)
                if at % AT_ONCE == AT_ONCE - 1:
                    await asyncio.sleep(0)
        if self._mailbox is not None and in_boxes:
            await self._look_into_boxes(self._mailbox, in_boxes, outcomes)
        return outcomes, len(others)

    def _outcome_here(self, found: Found, device_id: str) -> Outcome | None:
        """Of a message that was sent to connections of this server, if nothing else is noted of it."""
        if not found.batch.routed_at_s or self._mailbox is not None:
            return None  # a mailbox may have dropped it: it is transient, or was stored earlier
        timestamp_ms = found.batch.records[found.at].timestamp_ms
        clients = self._hub.clients_of(device_id)
        return "waiting" if any(client.is_queued(found.payload, timestamp_ms) for client in clients) else "written"

    async def _look_into_boxes(
        self, mailbox: Mailbox, stored: Mapping[str, tuple[Found, int]], outcomes: dict[str, Outcome | None]
    ) -> None:
        device_ids = list(stored)
        try:
            async with asyncio.timeout(BOX_PATIENCE_S):
                for first in range(0, len(device_ids), AT_ONCE):
                    some = device_ids[first : first + AT_ONCE]
                    looks = (self._look(mailbox, device_id, *stored[device_id]) for device_id in some)
                    for device_id, outcome in zip(some, await asyncio.gather(*looks), strict=True):
                        outcomes[device_id] = better(outcomes[device_id], outcome)
        except (MailboxError, TimeoutError):
            return

    async def _look(self, mailbox: Mailbox, device_id: str, found: Found, number: int) -> Outcome:
        record = found.batch.records[found.at]
        options: Options | None = record.options
        name = lane_of(options)
        lane = (await mailbox.look(device_id)).lane(name)
        (page,) = await mailbox.read(device_id, [LaneRead(name, number - 1, PageLimits(1))])
        return outcome_in_box(
            lane,
            number,
            is_in_box=bool(page.messages) and page.messages[0].number == number,
            has_expired=self._has_expired(found),
            may_collapse=options is not None and options.collapse_key is not None,
        )

    def _has_expired(self, found: Found) -> bool:
        record, read_ms = found.batch.records[found.at], found.batch.at_s * 1000
        now_ms = self._memory.wall_clock() * 1000
        if record.options is not None and record.options.ttl_s:
            return bool(record.options.expires_ms(record.timestamp_ms, read_ms) < now_ms)
        return bool((record.timestamp_ms or read_ms) + self._mailbox_ttl_s * 1000 < now_ms)


def _away(found: Found) -> frozenset[str]:
    """The devices whose messages were forwarded: the servers that hold them know more."""
    return frozenset(device_id for _, _, device_id in found.forwarded() if device_id is not None)


def better(one: Outcome | None, other: Outcome | None) -> Outcome | None:
    """The outcome that says more of a device."""
    return one if _RANK.get(one, 2) > _RANK.get(other, 2) else other


def merge_traces(message_id: str, answers: Iterable[TraceAnswer], missing: Sequence[str]) -> dict[str, object] | None:
    """The answer of all servers; None if none of them remembers the message."""
    answers = [answer for answer in answers if answer.records]
    if not answers:
        return None
    outcomes: dict[str, Outcome | None] = {}
    for device in (device for answer in answers for device in answer.devices):
        outcomes[device.device_id] = better(outcomes.get(device.device_id), device.outcome)
    counts = Counter(outcome for outcome in outcomes.values() if outcome is not None)
    shown: dict[str, int] = dict(sorted(counts.items()))
    others = sum(answer.others for answer in answers)
    if others:
        shown[OTHERS] = others
    if not outcomes:
        shown["not_connected"] = 1  # it addresses no device
    steps = sorted((step for answer in answers for step in answer.steps), key=_order)
    body: dict[str, object] = {
        "id": message_id,
        "steps": [{"at": _shown(step.at), "server": step.server, "step": step.step} for step in steps],
        "devices": [
            {"device_id": device_id, "outcome": outcomes[device_id]} for device_id in sorted(outcomes)[:MAX_DEVICES]
        ],
        "counts": shown,
        "missing": missing,
        "length": answers[0].length,
    }
    text = next((answer.text for answer in answers if answer.text is not None), None)
    return body if text is None else body | {"text": text}


def _order(step: TraceStep) -> tuple[bool, float, int]:
    return step.at is None, step.at or 0.0, _STEPS.index(step.step) if step.step in _STEPS else len(_STEPS)


_STEPS: Final = ("produced", "read", "addressed", "stored", "forwarded", "written", "acknowledged")


def _shown(unix_s: float | None) -> str | None:
    """RFC 3339 in UTC, with milliseconds."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
