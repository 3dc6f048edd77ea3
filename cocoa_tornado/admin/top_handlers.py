"""The devices that need attention."""

from __future__ import annotations

from typing import Final

from .handlers import AdminHandler, expensive
from .requests import whole_number
from .top import MAX_ROWS, TOP, TopQuestion, merge_top

DEFAULT_ROWS: Final = 10


class TopHandler(AdminHandler):
    """``GET top?limit=``: the slowest readers, the most frequent reconnects, the delivery loops, the full boxes
    and the records that were read again, of all servers."""

    @expensive
    async def get(self) -> None:
        limit = whole_number(self.request.query_arguments, "limit", 1, MAX_ROWS) or DEFAULT_ROWS
        answers, missing = await self.ask(TOP, TopQuestion(limit))
        missing = sorted([*missing, *(answer.server for answer in answers if answer.is_late)])
        self.answer_struct(200, merge_top(answers, limit) | {"missing": missing})
