"""The quarantine: its newest records, and putting one back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import ClassVar, Final

import msgspec

from ..errors import AlreadyRequeued, BrokerError, RecordGone, RecordTooLarge
from ..plain_text import one_line
from ..rules.admin_tokens import WRITE
from ..rules.quarantined import Quarantined, Returned, returned
from ..rules.records import MAX_RECORD_BYTES, Rejected, decode
from ..web.handlers import shown_time
from ..web.publish_handler import PROBLEMS
from .handlers import AdminHandler, expensive
from .requests import DEFAULT_PAGE, Invalid, whole_number
from .rows import MAX_PAGE

PATIENCE_S: Final = 15.0
SHOWN_BYTES: Final = 16 * 1024
"""Of one value."""
SHOWN_TOTAL_BYTES: Final = 2 * 1024 * 1024
"""Of all values of an answer."""
SHOWN_HEADERS: Final = 100
MAX_DIGITS: Final = 19


class HeaderRow(msgspec.Struct, frozen=True):
    """:ivar value: null without ``admin:text``"""

    name: str
    value: str | None


class QuarantineRow(msgspec.Struct, frozen=True, kw_only=True):
    """One record of the quarantine topic. Text from producers is one printable line each, except the value.

    :ivar reason, topic, source_partition, source_offset: why and where it was rejected; null if unknown
    :ivar value: its text; bytes that are not UTF-8 are replaced. Null without ``admin:text``, or if the answer is full
    :ivar is_cut: there is more of the value than is shown
    :ivar dropped: parts that the copy lacks because of the topic's size limit, each with its size
    :ivar requeued: null if that is not known, only for a single record
    """

    partition: int
    offset: int
    timestamp: str | None
    reason: str | None
    topic: str | None
    source_partition: int | None
    source_offset: int | None
    key: str | None
    value_bytes: int
    value: str | None
    is_cut: bool
    headers: tuple[HeaderRow, ...]
    dropped: dict[str, int]
    requeued: bool | None


def rows_of(records: Iterable[Quarantined], *, with_text: bool) -> list[QuarantineRow]:
    """Show records. Values are omitted once those before them exceed the limit of the answer."""
    rows, left = [], SHOWN_TOTAL_BYTES
    for record in records:
        value = record.value or b""
        is_shown = with_text and len(value) <= left
        left -= len(value) if is_shown else 0
        rows.append(_row(record, value if is_shown else None, with_text=with_text))
    return rows


def _row(record: Quarantined, shown: bytes | None, *, with_text: bool) -> QuarantineRow:
    origin = record.origin
    return QuarantineRow(
        partition=record.partition,
        offset=record.offset,
        timestamp=shown_time(record.timestamp_ms),
        reason=None if origin.reason is None else one_line(origin.reason),
        topic=None if origin.topic is None else one_line(origin.topic),
        source_partition=origin.partition,
        source_offset=origin.offset,
        key=_line(record.key),
        value_bytes=record.value_bytes,
        value=None if shown is None else shown.decode("utf-8", "replace"),
        is_cut=with_text and (shown is None or len(shown) < record.value_bytes),
        headers=tuple(
            HeaderRow(one_line(name), _line(value) if with_text else None)
            for name, value in record.headers[:SHOWN_HEADERS]
        ),
        dropped={one_line(name): size for name, size in origin.dropped},
        requeued=record.is_requeued,
    )


def _line(value: bytes | None) -> str | None:
    return None if value is None else one_line(value.decode("utf-8", "replace"))


class Unfit(Exception):
    """The record is still invalid.

    :ivar reason: the router's
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Corrected:
    """Checks one record with the router's own rules; any thread.

    :param body: the corrected value; empty: the record is unchanged
    :ivar message_id: the record's ``id``; None before the check, or if it has none
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.message_id: str | None = None

    def __call__(self, record: Quarantined) -> Returned:
        back = returned(record, self._body)
        decoded = decode(back.key, back.value, record.timestamp_ms, back.headers)
        if isinstance(decoded, Rejected):
            raise Unfit(decoded.reason)
        self.message_id = None if decoded.options is None else decoded.options.id
        return back


class QuarantineHandler(AdminHandler):
    """``GET quarantine?limit=``: the newest records of the quarantine topic, newest first."""

    @expensive
    async def get(self) -> None:
        limit = whole_number(self.request.query_arguments, "limit", 1, MAX_PAGE) or DEFAULT_PAGE
        shown = SHOWN_BYTES if self.may_see_text else 0
        try:
            async with asyncio.timeout(PATIENCE_S):
                records = await self.context.broker.quarantined(limit, shown)
        except (BrokerError, TimeoutError):
            refuse_unavailable(self)
        else:
            # They are in Kafka, whichever server is asked: no answer of another one could be missing.
            body = {"records": rows_of(records, with_text=self.may_see_text), "missing": ()}
            self.answer_struct(200, body)


class QuarantinedHandler(AdminHandler):
    """``GET quarantine/{partition}/{offset}``: one record, with up to ``SHOWN_TOTAL_BYTES`` of its value."""

    @expensive
    async def get(self, partition: str, offset: str) -> None:
        where = _number(partition, "partition"), _number(offset, "offset")
        shown = SHOWN_TOTAL_BYTES if self.may_see_text else 0
        try:
            async with asyncio.timeout(PATIENCE_S):
                record = await self.context.broker.quarantined_at(*where, shown)
        except RecordGone:
            self.refuse(404, "No such record")
        except (BrokerError, TimeoutError):
            refuse_unavailable(self)
        else:
            [row] = rows_of([record], with_text=self.may_see_text)
            self.answer_struct(200, row)


class RequeueHandler(AdminHandler):
    """``POST quarantine/{partition}/{offset}/requeue``: puts a record back on the results topic, once.

    The order of the answers, after those of every request: 413 (the body), 400 (the path), 404, 409, 400 or 413 (the
    record), 503.
    """

    scopes: ClassVar = {"POST": WRITE}
    max_body_bytes = MAX_RECORD_BYTES

    async def post(self, partition: str, offset: str) -> None:
        where = _number(partition, "partition"), _number(offset, "offset")
        judge = Corrected(self.body())
        try:
            async with asyncio.timeout(PATIENCE_S):
                place = await self.context.broker.requeue(*where, judge)
        except RecordGone:
            self.refuse(404, "No such record")
        except AlreadyRequeued:
            self.refuse(409, "The record has been requeued already")
        except Unfit as error:
            self.refuse(413 if error.reason == "too_large" else 400, PROBLEMS[error.reason])
        except RecordTooLarge:
            self.refuse(413, PROBLEMS["too_large"])
        except (BrokerError, TimeoutError):
            refuse_unavailable(self)
        else:
            message_id = judge.message_id or place
            self.note_in_log("id", message_id)
            self.answer(202, {"id": message_id})


def refuse_unavailable(handler: AdminHandler) -> None:
    handler.refuse(503, "Broker not available", {"Retry-After": str(handler.context.retry_after_s)})


def _number(text: str, name: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > MAX_DIGITS:
        raise Invalid(name)
    return int(text)
