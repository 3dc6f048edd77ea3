"""How many bytes from devices the process holds, and which sockets may be read on. Pure.

Two amounts, each with its own bound, so that neither blocks the other: messages *under way*, which have arrived in
part, and messages *held*, which are complete and wait for the broker.

- While ``held`` is at its bound, the gateway reads only from devices without data here, one piece at a time. Pongs,
  acknowledgements and close frames still get through.
- While ``under_way`` is at its bound, short messages pass, and long ones must still be able to end, or there would be a
  deadlock. So a few devices at a time get a turn, in the order in which they began to wait. A device that does not end
  its message within its turn loses its connection, because it holds what others wait for.
"""

from __future__ import annotations

from itertools import islice
from typing import Final, Generic, TypeVar

TURNS: Final = 8
TURN_S: Final = 30.0
MAX_PIECE: Final = 16 * 1024
MIN_PIECE: Final = 4 * 1024

H = TypeVar("H")  # hashable


def piece_bytes(budget: int, connections: int) -> int:
    """The size of one read from a socket: reads of all connections together fit the budget, but a read is never so
    small that an ordinary message takes several."""
    return max(MIN_PIECE, min(MAX_PIECE, budget // max(1, connections)))


class Intake(Generic[H]):
    """Counts bytes. Each connection knows its own share.

    :param limit: half of it for each amount
    :ivar under_way: bytes of messages that have arrived in part
    :ivar held: bytes of complete messages that wait for the broker
    """

    def __init__(self, limit: int) -> None:
        self.bound = limit // 2
        self.under_way = self.held = 0
        self._turns: dict[H, float] = {}
        self._waiting: dict[H, None] = {}
        self._waiting_for_turn: dict[H, None] = {}

    def __repr__(self) -> str:
        waiting = len(self._waiting) + len(self._waiting_for_turn)
        return f"<Intake {self.under_way} under way, {self.held} held, {waiting} waiting>"

    @property
    def total(self) -> int:
        return self.under_way + self.held

    @property
    def is_full(self) -> bool:
        """True if no more may be held."""
        return self.held >= self.bound

    def may_read(self, connection: H, under_way: int, held: int, now: float) -> bool:
        """True if this connection may read on. Takes a turn for it if it needs one and one is free.

        :param under_way: its own bytes under way
        :param held: its own bytes held
        """
        if not under_way and not held:
            return True
        if self.is_full:
            self._turns.pop(connection, None)  # it could not end its message now
            return False
        if self.under_way < self.bound or under_way <= MIN_PIECE or connection in self._turns:
            return True
        if len(self._turns) >= TURNS:
            return False
        self._turns[connection] = now + TURN_S
        return True

    def wait(self, connection: H, under_way: int) -> None:
        """The connection may not read on, and waits with this many bytes under way."""
        waiting = self._waiting if under_way <= MIN_PIECE else self._waiting_for_turn
        waiting[connection] = None

    def end_turn(self, connection: H) -> None:
        """The connection's message is complete."""
        self._turns.pop(connection, None)

    def forget(self, connection: H) -> None:
        """The connection is gone, or no longer waits."""
        self._waiting.pop(connection, None)
        self._waiting_for_turn.pop(connection, None)
        self._turns.pop(connection, None)

    def next_to_wake(self) -> list[H]:
        """The connections that may resume now, in order of waiting, as many as there is room for."""
        if self.is_full:
            return []
        places = (self.bound - self.held) // MAX_PIECE + 1
        room = self.bound - self.under_way
        turns = min(places, room // MAX_PIECE + 1) if room > 0 else TURNS - len(self._turns)
        return _first(self._waiting, places) + _first(self._waiting_for_turn, turns)

    def late(self, now: float) -> list[H]:
        """The connections whose turn has expired with their message incomplete, each once."""
        late = [connection for connection, until in self._turns.items() if until <= now]
        for connection in late:
            del self._turns[connection]
        return late


def _first(waiting: dict[H, None], count: int) -> list[H]:
    """Remove up to ``count`` from the front of the queue."""
    found = list(islice(waiting, count))
    for connection in found:
        del waiting[connection]
    return found
