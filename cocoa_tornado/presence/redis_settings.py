"""The settings of presence in Redis, and the rules between them."""

# ruff: noqa: RUF009
# row() is dataclasses.field() with the table's columns; it creates no default that two objects could share.

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from msgspec import Meta

from ..redis_store.redis_url import database_of, redis_scheme
from ..settings.domain import Duration, Line
from ..settings.rows import Fault, row

SERVERS: Final = "Several servers"
PRESENCE_REDIS: Final = redis_scheme(instead="local://")
CLOCK_DRIFT: Final = 0.01
"""The relative error that the clock of a server may have."""
BEFORE_FENCE_S: Final = 1.2
"""How much shorter than the fence another server watches this one: ``Timing.watch_s``."""
LEAST_DIFFERENCE_S: Final = 3.0
"""Between freeze and fence, in either mode."""

PresenceMode = Literal["freeze", "strict"]
MARGINS_S: Final[dict[PresenceMode, float]] = {"freeze": 0.5, "strict": 3.3}
"""Between the end of a server's lease and the earliest fence by another one: time to notice it and, in strict mode, to
close the connections."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PresenceSettings:
    """The part of ``Settings`` for several servers."""

    server_name: Annotated[Line, Meta(max_length=128)] = row(
        SERVERS, "", "Name of this server for people and other servers; empty: host name and port."
    )
    presence_mode: PresenceMode = row(
        SERVERS,
        "freeze",
        "What a server that cannot reach Redis does with its connections: freeze or strict.",
        "After ``presence_freeze`` it neither sends messages nor admits devices. With ``freeze``, it keeps its "
        "connections open for ``presence_cut``, and resumes if no other server has taken its devices over meanwhile. "
        "With ``strict``, it closes them at once, so that no device has two open connections.",
    )
    presence_fence_s: Annotated[float, Meta(ge=5, le=3600), Duration] = row(
        SERVERS,
        10.0,
        "Time after which the devices of a server that has stopped may connect elsewhere.",
        "The same on all servers. At least 3 s longer than ``presence_freeze``, or 4.7 s with ``presence_mode`` "
        "``strict``; more if they are long, since clocks may differ by 1 %. An error names the least value.",
    )
    presence_freeze_s: Annotated[float, Meta(ge=2, le=3600), Duration] = row(
        SERVERS, 5.0, "Time without an answer of Redis after which a server stops sending and admitting."
    )
    presence_cut_s: Annotated[float, Meta(ge=2, le=86400), Duration] = row(
        SERVERS,
        120.0,
        "Time without an answer of Redis after which a server closes its connections.",
        "Not shorter than ``presence_freeze``, which replaces it with ``presence_mode`` ``strict``.",
    )


def least_fence(mode: PresenceMode, freeze_s: float) -> float:
    """The shortest fence in seconds: by then, a lease has ended by the slowest clock, and its server has acted."""
    watch_s = (MARGINS_S[mode] + (1 + CLOCK_DRIFT) * freeze_s) / (1 - CLOCK_DRIFT)
    least = max(freeze_s + LEAST_DIFFERENCE_S, watch_s + BEFORE_FENCE_S)
    return math.ceil(round(least * 10, 6)) / 10


def faults(settings: PresenceSettings, presence: str, broker: str, mailbox: str) -> Iterator[Fault]:
    """The violated rules, in the order of reporting.

    :param presence: URLs of the settings with these names
    """
    fence, freeze, cut = settings.presence_fence_s, settings.presence_freeze_s, settings.presence_cut_s
    mode = settings.presence_mode
    least = least_fence(mode, freeze)
    if fence < least:
        names: tuple[str, ...] = ("presence_fence", "presence_freeze")
        problem = f"presence_fence {fence:g}s is too short for presence_freeze {freeze:g}s"
        if mode == "strict":
            names, problem = (*names, "presence_mode"), f"{problem} and presence_mode strict"
        yield Fault(names, problem, f"a presence_fence of at least {least:g}s, or a shorter presence_freeze")
    if cut < freeze:
        problem = f"presence_cut {cut:g}s is shorter than presence_freeze {freeze:g}s"
        yield Fault(("presence_cut", "presence_freeze"), problem, "presence_freeze <= presence_cut")
    if database_of(presence) is None:
        return
    if broker.lower().startswith("memory:"):
        yield Fault(
            ("presence", "broker"), "servers that share presence cannot share the broker memory://", "kafka://host:port"
        )
    if mailbox.lower().startswith(("memory:", "sqlite:")):
        scheme = mailbox.partition("://")[0].lower()
        yield Fault(
            ("presence", "mailbox"),
            f"servers that share presence cannot share the mailbox {scheme}://",
            "none://, or the Redis of presence",
        )
    elif database_of(mailbox) not in (None, database_of(presence)):
        yield Fault(
            ("presence", "mailbox"),
            "presence and mailbox are in different Redis databases",
            "the same server, or the same master, and the same database",
        )
