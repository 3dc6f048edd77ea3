"""The state of each server, in a few figures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import msgspec

from ..brokers.port import Broker
from ..counters import LATENCY_BOUNDS_S, Counters
from ..hub import Hub
from ..mailboxes.port import Mailbox
from ..rules.last_hour import PERIOD_S, Counted, LastHour
from ..rules.readiness_report import Readiness
from ..web.handlers import timestamp
from .handlers import AdminHandler
from .servers import Topic


class OverviewQuestion(msgspec.Struct, frozen=True):
    """The question has no parameters."""


class RecentRow(msgspec.Struct, frozen=True, kw_only=True):
    """A server's counts of the last hour, without those that are 0.

    :ivar since: when that was 0, RFC 3339, UTC: an hour ago, or at most a minute more; the start, if that is later
    :ivar counters, refused, closed: see :class:`ServerRow`
    """

    since: str
    counters: Mapping[str, int]
    refused: Mapping[str, int]
    closed: Mapping[str, int]


class ServerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One server.

    :ivar started_at: RFC 3339, UTC
    :ivar connections: of devices, now; ``devices`` may be fewer
    :ivar failing: the parts that keep it from being ready; empty if it is ready
    :ivar parts: as in ``GET /api/v1/ready``
    :ivar lag: records that the broker holds and the server has not read; null if it is not known
    :ivar waiting: messages in the mailbox, of all servers that share it, those included that were written and not
        acknowledged; null if that is not known, or there is none
    :ivar counters: since the start
    :ivar refused: handshakes since the start that were refused, by reason
    :ivar closed: connections of devices that have ended since the start, by close code
    :ivar latency: deliveries since the start, from the record's timestamp to the socket, by upper bound: one for each
        of ``latency_bounds_ms``, and the slower ones
    :ivar device_port: of ``/ws``, if the admin API has a port of its own
    :ivar recent: what was counted lately; null: the server is of an earlier release
    """

    server: str
    version: str
    started_at: str
    connections: int
    devices: int
    failing: list[str]
    parts: Mapping[str, Mapping[str, Any]]
    lag: int | None
    waiting: int | None
    waiting_bytes: int | None
    counters: dict[str, int]
    latency: list[int]
    device_port: int | None = None
    refused: dict[str, int] = {}
    closed: dict[str, int] = {}
    recent: RecentRow | None = None


OVERVIEW: Final = Topic("overview", OverviewQuestion, ServerRow)


class Overview:
    """This server's figures. IOLoop thread only.

    :param name: returns the name of this server
    :param started_at: Unix seconds
    :param fenced: returns how often this server was fenced
    :param declared_dead: returns how many other servers this one has fenced
    :param clock: monotonic seconds; :param wall_clock: Unix seconds
    """

    def __init__(
        self,
        name: Callable[[], str],
        version: str,
        started_at: float,
        hub: Hub,
        counters: Counters,
        broker: Broker,
        mailbox: Mailbox | None,
        readiness: Callable[[], Readiness],
        device_port: Callable[[], int | None],
        fenced: Callable[[], int],
        declared_dead: Callable[[], int],
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._name, self._version, self._started_at = name, version, started_at
        self._hub, self._counters, self._broker, self._mailbox = hub, counters, broker, mailbox
        self._readiness, self._device_port, self._fenced = readiness, device_port, fenced
        self._declared_dead = declared_dead
        self._clock, self._wall_clock = clock, wall_clock
        self._last_hour = LastHour(clock())
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Overview {self._name()}>"

    def start(self) -> None:
        """Take snapshots of the counters from now on, until :meth:`stop`."""
        self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._on_timer)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self.start()
        self._last_hour.note(self._clock(), self._counted())

    async def answer(self, question: OverviewQuestion) -> ServerRow:
        counted = self._counted()
        ready, mailbox = self._readiness(), None if self._mailbox is None else self._mailbox.status()
        return ServerRow(
            server=self._name(),
            version=self._version,
            started_at=timestamp(self._started_at),
            connections=len(self._hub),
            devices=len(self._hub.devices()),
            failing=ready.failing,
            parts=ready.parts,
            lag=self._broker.status().lag,
            waiting=None if mailbox is None else mailbox.messages,
            waiting_bytes=None if mailbox is None else mailbox.size_bytes,
            counters=dict(counted.counters),
            latency=self._latency(),
            device_port=self._device_port(),
            refused=dict(counted.refused),
            closed=dict(counted.closed),
            recent=self._recent(counted),
        )

    def _recent(self, counted: Counted) -> RecentRow:
        seconds, recent = self._last_hour.since(self._clock(), counted)
        since = timestamp(self._wall_clock() - seconds)
        return RecentRow(since=since, counters=recent.counters, refused=recent.refused, closed=recent.closed)

    def _counted(self) -> Counted:
        handshakes = self._counters.handshakes
        refused = {reason: count for reason, count in handshakes.items() if reason != "accepted"}
        return Counted(self._totals(), refused, dict(self._counters.closed))

    def _totals(self) -> dict[str, int]:
        counters, broker = self._counters, self._broker.counters
        lost = {} if self._mailbox is None else self._mailbox.counters.lost
        accepted = counters.handshakes.get("accepted", 0)
        return {
            "read": broker.consumed,
            # What was sent from a box has no latency.
            "delivered": counters.latency.count + counters.caught_up,
            "kept": counters.kept,
            "not_connected": counters.unknown_device,
            "dropped": sum(counters.dropped.values()),
            "lost": sum(lost.values()),
            "quarantined": sum(broker.quarantined.values()),
            "other_key": broker.key_mismatch,
            "fenced": self._fenced(),
            "declared_dead": self._declared_dead(),
            "from_devices": counters.device_messages,
            "accepted": accepted,
            "refused": sum(counters.handshakes.values()) - accepted,
            "closed": sum(counters.closed.values()),
            # Each is a record of the results topic, which one of the servers reads.
            "canaries": counters.canary.sent,
            "canaries_lost": counters.canary.lost,
            "leaked": counters.canary.leaked,
        }

    def _latency(self) -> list[int]:
        found, before = [], 0
        for _, total in self._counters.latency.cumulative():
            found.append(int(total) - before)
            before = int(total)
        return found


class OverviewHandler(AdminHandler):
    """``GET overview``: a row for each server."""

    bounds_ms: ClassVar = [round(bound * 1000, 3) for bound in LATENCY_BOUNDS_S]

    async def get(self) -> None:
        rows, missing = await self.ask(OVERVIEW, OverviewQuestion())
        found = {"servers": sorted(rows, key=lambda row: row.server), "latency_bounds_ms": self.bounds_ms}
        self.answer_struct(200, found | {"missing": missing})
