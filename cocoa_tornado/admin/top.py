"""The devices that an operator looks at first: those that read slowly, that connect again and again, that get the same
messages again and again, or whose boxes are full; and the records that were read again."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from ..hub import Client, Hub
from ..rules.read_again import Run, read_again
from ..rules.record_names import plain_name
from ..rules.repeats import Repeat, Repeats
from ..rules.trace_memory import TraceMemory
from ..web.handlers import timestamp
from .servers import Topic

MAX_ROWS: Final = 100
RUNS_PATIENCE_S: Final = 0.5
"""To look through what was read: less than the asking server waits, so that it gets the other lists anyway."""
CHUNK: Final = 500
"""Connections that are looked at in one turn of the loop: about a millisecond."""


class TopQuestion(msgspec.Struct, frozen=True):
    """:ivar limit: of each list"""

    limit: int


class ReaderRow(msgspec.Struct, frozen=True, kw_only=True):
    """A connection. The fields are those of :class:`~.rows.ConnectionRow`."""

    device_id: str
    server: str
    generation: str
    queue: int
    rtt_ms: float | None


class RepeatRow(msgspec.Struct, frozen=True, kw_only=True):
    """An event that has happened to a device ``count`` times.

    :ivar since, last: Unix seconds
    """

    device_id: str
    count: int
    since: float
    last: float


class RunRow(msgspec.Struct, frozen=True, array_like=True):
    """See :class:`~..rules.read_again.Run`."""

    partition: str
    first: int
    last: int
    at: float


class TopAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of one server; each list of devices has at most as many rows as requested.

    :ivar server: its name
    :ivar runs: what it has read, as far as it remembers
    :ivar is_late: it has not looked through that in time
    """

    queues: tuple[ReaderRow, ...] = ()
    round_trips: tuple[ReaderRow, ...] = ()
    reconnects: tuple[RepeatRow, ...] = ()
    loops: tuple[RepeatRow, ...] = ()
    full_boxes: tuple[RepeatRow, ...] = ()
    server: str = ""
    runs: tuple[RunRow, ...] = ()
    is_late: bool = False


TOP: Final = Topic("top", TopQuestion, TopAnswer)


class _Reader(NamedTuple):
    """A connection, as it was looked at."""

    queue: int
    round_trip_s: float | None
    client: Client


class Top:
    """This server's devices. IOLoop thread only; long work is divided between turns of the loop.

    :param reconnects: connections that were short, or refused
    :param loops: messages that were sent again
    :param full_boxes: messages that were dropped
    :param memory: of the batches that were read
    :param name: returns the name of this server
    :param wall_clock: Unix seconds
    """

    def __init__(
        self,
        hub: Hub,
        reconnects: Repeats,
        loops: Repeats,
        full_boxes: Repeats,
        memory: TraceMemory,
        name: Callable[[], str],
        wall_clock: Callable[[], float],
    ) -> None:
        self._hub, self._reconnects, self._loops, self._full_boxes = hub, reconnects, loops, full_boxes
        self._memory, self._name, self._wall_clock = memory, name, wall_clock

    def __repr__(self) -> str:
        return f"<Top {self._hub!r}>"

    async def answer(self, question: TopQuestion) -> TopAnswer:
        limit, now = min(question.limit, MAX_ROWS), self._wall_clock()
        queues, round_trips = list[_Reader](), list[_Reader]()
        device_ids = list(self._hub.devices())
        for begin in range(0, len(device_ids), CHUNK):
            if begin:
                await asyncio.sleep(0)
            readers = self._readers(device_ids[begin : begin + CHUNK])
            queues = heapq.nlargest(limit, [*queues, *(each for each in readers if each.queue)], key=_queue)
            pinged = [each for each in readers if each.round_trip_s is not None]
            round_trips = heapq.nlargest(limit, [*round_trips, *pinged], key=_round_trip)
        runs = await self._runs()
        return TopAnswer(
            queues=tuple(map(self._row, queues)),
            round_trips=tuple(map(self._row, round_trips)),
            reconnects=_repeats(self._reconnects.most(limit, now)),
            loops=_repeats(self._loops.most(limit, now)),
            full_boxes=_repeats(self._full_boxes.most(limit, now, least=1)),
            server=self._name(),
            runs=runs or (),
            is_late=runs is None,
        )

    async def _runs(self) -> tuple[RunRow, ...] | None:
        """What was read; None: it was not looked through in time."""
        try:
            async with asyncio.timeout(RUNS_PATIENCE_S):
                for runs in self._memory.runs():
                    if runs is not None:
                        return tuple(RunRow(*run) for run in runs.all())
                    await asyncio.sleep(0)
        except TimeoutError:
            return None
        return ()

    def _readers(self, device_ids: Iterable[str]) -> list[_Reader]:
        return [
            _Reader(health.queued, health.round_trip_s, client)
            for device_id in device_ids
            for client in self._hub.clients_of(device_id)
            for health in [client.health]
        ]

    def _row(self, reader: _Reader) -> ReaderRow:
        client, round_trip_s = reader.client, reader.round_trip_s
        generation = client.grant.generation
        return ReaderRow(
            device_id=client.identity.device_id,
            server=self._name(),
            generation=f"{generation.term}.{generation.number}",
            queue=reader.queue,
            rtt_ms=None if round_trip_s is None else round(round_trip_s * 1000, 1),
        )


def _queue(reader: _Reader) -> int:
    return reader.queue


def _round_trip(reader: _Reader) -> float:
    return reader.round_trip_s or 0.0


def _repeats(found: Iterable[tuple[str, Repeat]]) -> tuple[RepeatRow, ...]:
    return tuple(
        RepeatRow(device_id=device_id, count=row.times, since=row.since, last=row.last) for device_id, row in found
    )


def largest_queues(rows: Iterable[ReaderRow], limit: int) -> list[ReaderRow]:
    """The connections with the most messages that their sockets have not taken."""
    return heapq.nlargest(limit, (row for row in rows if row.queue), key=lambda row: row.queue)


def longest_round_trips(rows: Iterable[ReaderRow], limit: int) -> list[ReaderRow]:
    """The connections with the slowest last pong."""
    return heapq.nlargest(limit, (row for row in rows if row.rtt_ms is not None), key=lambda row: row.rtt_ms or 0.0)


def merge_top(answers: Sequence[TopAnswer], limit: int) -> dict[str, object]:
    """Merge the answers of all servers. Events of a device at several servers are added up."""
    return {
        "queues": largest_queues((row for answer in answers for row in answer.queues), limit),
        "round_trips": longest_round_trips((row for answer in answers for row in answer.round_trips), limit),
        "reconnects": _together((row for answer in answers for row in answer.reconnects), limit),
        "loops": _together((row for answer in answers for row in answer.loops), limit),
        "full_boxes": _together((row for answer in answers for row in answer.full_boxes), limit),
        "read_again": _read_again(answers)[:limit],
    }


def _read_again(answers: Sequence[TopAnswer]) -> list[dict[str, object]]:
    runs = (
        (answer.server, Run(row.partition, row.first, row.last, row.at)) for answer in answers for row in answer.runs
    )
    return [
        {
            "id": f"{plain_name(again.partition)}/{again.first}",
            "records": again.last - again.first + 1,
            "count": again.times,
            "servers": again.servers,
            "last": timestamp(again.at_s),
        }
        for again in read_again(runs)
    ]


def _together(rows: Iterable[RepeatRow], limit: int) -> list[dict[str, object]]:
    by_id: dict[str, RepeatRow] = {}
    for row in rows:
        other = by_id.get(row.device_id, row)
        by_id[row.device_id] = RepeatRow(
            device_id=row.device_id,
            count=row.count if other is row else row.count + other.count,
            since=min(row.since, other.since),
            last=max(row.last, other.last),
        )
    most = heapq.nlargest(limit, by_id.values(), key=lambda row: row.count)
    return [
        {"device_id": row.device_id, "count": row.count, "since": timestamp(row.since), "last": timestamp(row.last)}
        for row in most
    ]
