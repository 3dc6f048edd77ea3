"""What became of a message."""

from __future__ import annotations

from typing import Final

from .handlers import AdminHandler, expensive
from .requests import Invalid
from .traces import TRACE, TraceQuestion, merge_traces

MAX_ID_BYTES: Final = 512
"""An ``id`` has 64 bytes at most, and a topic's name 249."""


class TraceHandler(AdminHandler):
    """``GET messages/{id}``: the steps that a message has taken and what became of it at each device, after the fact.
    404 if no server that answers remembers it."""

    @expensive
    async def get(self, text: str) -> None:
        try:
            if len(text.encode()) > MAX_ID_BYTES:
                raise Invalid("id")
        except UnicodeEncodeError as error:  # it is not UTF-8
            raise Invalid("id") from error
        answers, missing = await self.ask(TRACE, TraceQuestion(text, self.may_see_text))
        body = merge_traces(text, answers, missing)
        if body is not None:
            self.answer_struct(200, body)
        elif missing:
            self.answer_struct(200, {"id": text, "steps": [], "devices": [], "counts": {}, "missing": missing})
        else:
            self.refuse(404, "No server remembers this message")
