"""The close codes that the gateway sends; docs/protocol.rst says how a device reacts to each.

Protocol errors (1002, 1007, 1009) are not here: each carries its own code and text, see ``rules/frames.py``.
"""

from __future__ import annotations

from typing import NamedTuple


class CloseReason(NamedTuple):
    """The content of a close frame.

    :ivar outcome: one word for the log
    """

    code: int
    text: str
    outcome: str


GOING_AWAY = CloseReason(1001, "server going away", "drain")
NO_PONG = CloseReason(1008, "no pong", "no_pong")
RATE_LIMITED = CloseReason(1008, "too many messages", "rate_limited")
TOO_BIG_FOR_BROKER = CloseReason(1009, "message too big for the broker", "too_big")
SLOW_CONSUMER = CloseReason(1013, "slow consumer", "slow_consumer")
SLOW_SENDER = CloseReason(1013, "message took too long", "slow_sender")
TOKEN_EXPIRED = CloseReason(4401, "token expired", "token_expired")
KEY_REMOVED = CloseReason(4401, "token no longer accepted", "key_removed")
REPLACED = CloseReason(4409, "replaced by another connection", "replaced")
DISCONNECTED = CloseReason(4410, "disconnected by an operator", "operator")
