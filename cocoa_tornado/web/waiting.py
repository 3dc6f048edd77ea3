"""Handshakes that wait for presence, on their bare sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from ..connection.sockets import peer_has_closed
from ..presence.grants import Grant, RefusalReason
from ..presence.port import Presence, Refused
from ..rules.claims import Claim

LOOK_S = 0.25
"""How often those are looked for that have vanished meanwhile. Nearly all handshakes wait for a thousandth of that."""


class Waiting:
    """One handshake that waits. Its claim is withdrawn by :meth:`give_up`, or when its client has closed.

    :ivar refusal: why it was refused, once :attr:`on_settled` is called; None: it was upgraded, has disconnected, or is
        to be checked again
    :ivar is_served: the socket needs no further handling
    :ivar on_settled: called once, never before the handshake has begun to wait
    """

    __slots__ = (
        "_claim",
        "_device_id",
        "_on_grant",
        "_on_vanished",
        "_waits",
        "is_served",
        "on_settled",
        "refusal",
        "sock",
    )

    def __init__(
        self,
        waits: Waits,
        sock: socket.socket,
        device_id: str,
        on_grant: Callable[[Grant], bool],
        on_vanished: Callable[[], None],
    ) -> None:
        self._waits, self.sock, self._device_id = waits, sock, device_id
        self._on_grant, self._on_vanished = on_grant, on_vanished
        self._claim: Claim | None = None
        self.refusal: RefusalReason | None = None
        self.is_served = False
        self.on_settled: Callable[[], None] | None = None

    @property
    def device_id(self) -> str:
        return self._device_id

    def begin(self) -> bool:
        """Begin to wait. Return False if it is already settled."""
        self._waits.enter(self)
        claim = self._waits.presence.begin_claim(self._device_id, self._on_verdict)
        if self not in self._waits.waiting:
            return False
        self._claim = claim
        return True

    def give_up(self) -> None:
        """Withdraw the claim: the socket is closed, or will be."""
        if self._waits.leave(self) and self._claim is not None:
            self._waits.presence.withdraw(self._device_id, self._claim)

    def look(self) -> None:
        """Give up if the client has closed."""
        if peer_has_closed(self.sock):
            self.give_up()
            self._vanish()

    def _on_verdict(self, verdict: Grant | Refused) -> None:
        if not self._waits.leave(self):
            if isinstance(verdict, Grant):
                self._waits.presence.release(verdict)
            return
        if isinstance(verdict, Refused):
            self.refusal = verdict.reason
        else:
            self.is_served = self._on_grant(verdict)
        if self.on_settled is not None:
            self.on_settled()

    def _vanish(self) -> None:
        self._on_vanished()
        self.sock.close()
        self.is_served = True
        if self.on_settled is not None:
            self.on_settled()


class Waits:
    """All handshakes that wait. IOLoop thread only.

    :ivar waiting: those without an answer yet
    """

    def __init__(self, presence: Presence) -> None:
        self.presence = presence
        self.waiting: dict[Waiting, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self.waiting)

    def enter(self, waiting: Waiting) -> None:
        self.waiting[waiting] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def leave(self, waiting: Waiting) -> bool:
        """Remove it; return False if it was not there."""
        if waiting not in self.waiting:
            return False
        del self.waiting[waiting]
        return True

    def _look(self) -> None:
        self._timer = None
        for waiting in list(self.waiting):
            waiting.look()
        if self.waiting:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
