"""The catalogue of close codes that the gateway sends, and what a device is to make of each."""

from __future__ import annotations

from typing import NamedTuple


class CloseReason(NamedTuple):
    """:ivar reconnect: whether coming back with the same token makes sense, and if so when

    ``outcome`` is one word for the log.
    """

    code: int
    text: str
    outcome: str
    reconnect: str


GOING_AWAY = CloseReason(1001, "server going away", "drain", "yes, after a delay")
NO_PONG = CloseReason(1008, "no pong", "no_pong", "yes")
RATE_LIMITED = CloseReason(1008, "too many messages", "rate_limited", "yes, and more slowly")
SLOW_CONSUMER = CloseReason(1013, "slow consumer", "slow_consumer", "yes, after a delay")
TOKEN_EXPIRED = CloseReason(4401, "token expired", "token_expired", "with a new token")
REPLACED = CloseReason(4409, "replaced by another connection", "replaced", "no: another connection has taken over")
"""Protocol errors (1002, 1003, 1007, 1009) carry the text of their own error: see ``rules/frames.py``."""
