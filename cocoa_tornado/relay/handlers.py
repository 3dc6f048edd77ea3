"""The handlers of a relay's messages, by kind. IOLoop thread only."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from .messages import RelayMessage
from .port import M, RelayCounters

log = logging.getLogger("cocoa.relay")


class Handlers:
    """See :meth:`~cocoa_tornado.relay.port.Relay.handle`.

    :param counters: count what is handed over
    """

    def __init__(self, counters: RelayCounters) -> None:
        self._counters = counters
        self._handlers: dict[type, Callable[[str, Any], None]] = {}

    def register(self, kind: type[M], handler: Callable[[str, M], None]) -> None:
        self._handlers[kind] = handler

    def call(self, sender: str, message: RelayMessage) -> None:
        """Hand a message over. A handler that fails is logged."""
        received = self._counters.received
        received[message.kind] = received.get(message.kind, 0) + message.count
        handler = self._handlers.get(type(message))
        if handler is None:
            return
        try:
            handler(sender, message)
        except Exception:
            log.exception("relay message failed", extra={"kind": message.kind, "sender": sender})
