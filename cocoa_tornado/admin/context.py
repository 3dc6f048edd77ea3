"""The context that the handlers of the admin API share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from ..mailboxes.port import Mailbox
from ..rules.rate import Allowances, LineBudget, RateLimit
from ..rules.shares import Shares
from .blocks import Blocks
from .connected import Connected
from .servers import Servers
from .trace_search import TraceSearch
from .watchers import Watchers

MAX_EXPENSIVE = 8
"""Concurrent requests that take long."""
MAX_EXPENSIVE_EACH = 4
"""The share of one operator."""
MAX_CLIENTS = 8192
"""Remembered addresses with wrong tokens, and operators: 1 MB each."""


@dataclass(frozen=True, slots=True)
class AdminContext:
    """Created by the composition root and passed through ``initialize``; IOLoop thread only.

    :ivar expensive: bounds the concurrent requests that take long
    :ivar expensive_shares: the same for each operator
    :ivar guesses: wrong tokens, by address; :ivar requests: with a token, by its subject
    """

    servers: Servers
    connected: Connected
    blocks: Blocks
    watchers: Watchers
    search: TraceSearch
    mailbox: Mailbox | None = None
    expensive: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_EXPENSIVE))
    expensive_shares: Shares = field(default_factory=lambda: Shares(MAX_EXPENSIVE_EACH))
    guesses: Allowances = field(default_factory=lambda: Allowances(MAX_CLIENTS))
    guess_lines: LineBudget = field(default_factory=lambda: LineBudget(RateLimit(per_s=1, burst=10)))
    requests: Allowances = field(default_factory=lambda: Allowances(MAX_CLIENTS))
