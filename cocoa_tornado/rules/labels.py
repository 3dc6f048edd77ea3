"""Every value that a counter's label may have. Pure.

A counter that first appears when it is incremented has no rate before that, and an alert on it misses the first
failure. So ``/metrics`` exports all of these from the start, as 0. A label that is counted but not listed here fails
the tests (``tests/harness.py``), but is exported too. Topics come from the settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .accepting import Obstacle
from .crowd import HttpPhase
from .handshake import NOT_WEBSOCKET
from .quarantine import Cause
from .records import REASONS

_TOKEN_REASONS: Final = (
    *("missing", "ambiguous", "too_long", "malformed", "critical", "algorithm", "unknown_key", "signature"),
    *("duplicate", "expired", "not_yet", "exp", "nbf", "iat", "issuer", "subject", "audience", "jti"),
    *("device_id", "device_version", "user_id", "groups", "lifetime", "key_removed"),
)

CLOSE_CODES: Final = (
    "lost",  # no close code was exchanged
    *("1000", "1001", "1002", "1003", "1005", "1007", "1008", "1009", "1011", "1012", "1013", "4401", "4409", "4410"),
    "other",  # a device could invent thousands of codes
)

_RELAY_KINDS: Final = ("forward", "wake_up", "challenge", "answer", "eviction", "fence", "query", "reply")

LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    "cocoa_accept_pauses": tuple(obstacle.value for obstacle in Obstacle),
    "cocoa_handshakes": (
        *(
            "accepted",
            NOT_WEBSOCKET,
            "bad_version",
            "bad_key",
            *_TOKEN_REASONS,
            "origin",
            "blocked",
            "interim",
            "cursor",
        ),
        *("mailbox", "presence", "full", "draining", "vanished"),
    ),
    "cocoa_connections_closed": CLOSE_CODES,
    "cocoa_messages_dropped": (
        *("overflow", "interim", "fault"),
        "expired",  # its ttl passed before it was written
        "repeated",  # of a record that the device has had: its partition has moved to another server
        "catching_up",  # its ttl is 0, and it could not wait, or not long enough, while the connection read its box
        # Queued for a connection that ended, by how it ended.
        *(
            "drain",
            "no_pong",
            "rate_limited",
            "too_big",
            "slow_consumer",
            "slow_sender",
            "token_expired",
            "key_removed",
            "replaced",
            "operator",
        ),
        *("protocol_error", "write_timeout", "closed_by_device", "lost"),
    ),
    "cocoa_http_connections_shed": (*(phase.value for phase in HttpPhase), "address"),
    "cocoa_bodies_refused": ("full", "too_large"),
    "cocoa_token_requests": ("issued", "wrong_credentials", "limited", "invalid"),
    "cocoa_records_quarantined": (*sorted(REASONS), "unreadable"),
    "cocoa_quarantine_lost": tuple(cause.value for cause in Cause),
    "cocoa_mailbox_lost": ("expired", "overflow", "emptied", "foreign_key"),
    "cocoa_relay_messages_sent": _RELAY_KINDS,
    "cocoa_relay_messages_refused": ("no_server", "overflow", "lost", "closed"),
    "cocoa_relay_messages_received": _RELAY_KINDS,
    "cocoa_speech_workers_lost": ("crashed", "out_of_memory", "stuck", "slow", "nonsense"),
    "cocoa_speech_streams": (
        *("transcribed", "no_speech", "failed", "not_decodable", "too_long", "too_large", "timeout", "vanished"),
        *("busy", "unpublished", "drained", "replaced"),
    ),
}
"""By metric family. ``duplicate`` of a handshake is a second connection of the device, or a claim that occurs twice."""
