"""What happened to a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..rules.trace_memory import Outcome
from .device import DEVICE, DeviceAnswer, DeviceQuestion, last_events
from .handlers import AdminHandler, expensive
from .requests import Invalid
from .rows import Page, merge
from .trace_answers import TRACE, Trace, TraceAnswer, TraceQuestion, merge_traces

MAX_ID_BYTES: Final = 512
"""An ``id`` has 64 bytes at most, and a topic's name 249."""
NOT_ARRIVED: Final[frozenset[Outcome | None]] = frozenset(
    {"waiting", "not_connected", "superseded", "slow_consumer", "overflow", "expired"}
)
"""Whether the device is connected explains these."""


class TraceHandler(AdminHandler):
    """``GET messages/{id}``: the steps of a message, and its outcome for each device.

    If no server remembers the message, the handler searches the results topic, the boxes and the quarantine. If none
    has it: 404 if all were searched and every server has answered; 200 without steps if servers are missing; 503 if the
    brokers or the mailbox could not be searched.
    """

    @expensive
    async def get(self, text: str) -> None:
        text = self.id_of(text)
        try:
            if len(text.encode()) > MAX_ID_BYTES:
                raise Invalid("id")
        except UnicodeEncodeError as error:  # it is not UTF-8
            raise Invalid("id") from error
        answers, missing = await self.ask(TRACE, TraceQuestion(text, self.may_see_text))
        trace = merge_traces(text, answers, missing)
        if trace is None or any(answer.is_partial for answer in answers):
            trace = await self._search(text, answers, missing)
        if trace is not None:
            await self._note_connection(trace)
            self.answer_struct(200, trace.body())

    async def _search(self, text: str, answers: list[TraceAnswer], missing: Sequence[str]) -> Trace | None:
        """Return the trace; None: the answer was given."""
        searched = await self.admin.search.search(text, with_text=self.may_see_text)
        found = [*answers, searched.answer or TraceAnswer()]
        trace = merge_traces(text, found, missing)
        if trace is not None:
            return trace
        if missing:
            return Trace(text, missing, about=["no server that answered remembers it", *searched.looked])
        if searched.unavailable:
            name = searched.unavailable[0]
            self.refuse(503, f"{name} not available", {"Retry-After": str(self.context.retry_after_s)})
        else:
            self.refuse(404, "; ".join(["No server remembers this message", *searched.looked]))
        return None

    async def _note_connection(self, trace: Trace) -> None:
        """For a message for one device, add a note whether the device is connected."""
        lost = [name for name, outcome in trace.outcomes.items() if outcome in NOT_ARRIVED]
        if len(trace.outcomes) == 1 and lost:
            answers, _ = await self.ask(DEVICE, DeviceQuestion(lost[0]))
            notes = [note for note in (trace.notes.get(lost[0]), connection_note(answers)) if note]
            trace.notes[lost[0]] = "; ".join(notes)


def connection_note(answers: Sequence[DeviceAnswer]) -> str:
    """The connection state of a device, for people."""
    rows, _ = merge([Page((answer.device,), False) for answer in answers if answer.device is not None], 1)
    connections = [connection for row in rows for connection in row.connections]
    if connections:
        servers = ", ".join(connection.server for connection in connections)
        queued = sum(connection.queue for connection in connections)
        return f"connected to {servers}" + (f"; messages queued for it: {queued}" if queued else "")
    events = [event for event in last_events(answers) if event["event"] in ("closed", "refused")]
    if not events:
        return "not connected, and no earlier connection is known"
    last = events[-1]
    note = f"not connected: {last['event']} with {last['code'] or 'no code'} by {last['server']} at {last['at']}"
    fenced = [answer.fenced for answer in answers if any(event.server == last["server"] for event in answer.events)]
    return note + (f", which was fenced {_times(max(fenced))}" if any(fenced) else "")


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
