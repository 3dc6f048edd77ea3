"""The bounds of an outbox, and which messages leave it to make room for another one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ..rules.terms import Terms
from .queue import Queue, Queued


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """:ivar max_messages: messages that may wait; :ivar max_bytes: their total size, including headers.

    Frames that the socket has begun to take, but not taken completely, count as waiting.
    """

    max_messages: int = 256
    max_bytes: int = 1024 * 1024

    def have_room(self, waiting: int, size: int) -> bool:
        """Whether a message may be queued.

        :param waiting: how many others wait
        :param size: the size of all, including the new one
        """
        return not waiting or (waiting < self.max_messages and size <= self.max_bytes)


class Squeezed(NamedTuple):
    """What :meth:`Outbox.squeeze_in` has done.

    :ivar queued: whether the new message is in the outbox now
    :ivar interims: how many interims were removed or not queued
    :ivar lows: how many messages of low priority were removed or not queued, interims not included
    :ivar dropped: these messages
    """

    queued: bool
    interims: int = 0
    lows: int = 0
    dropped: Sequence[Queued] = ()


class Withdrawn(NamedTuple):
    """What :meth:`Outbox.withdraw` has removed.

    :ivar lowest: the lowest number; 0: nothing was removed
    :ivar transient: the messages that are not stored: body, timestamp and terms of each, and the number before it
    """

    lowest: int = 0
    transient: Sequence[tuple[bytes, int, Terms | None, int]] = ()


class Droppable(NamedTuple):
    """A message that may be dropped to make room: :ivar queue: and :ivar at: where it is."""

    queue: Queue
    at: int
    is_interim: bool


def droppable(queues: Sequence[Queue], session: str, may_drop_low: bool) -> list[Droppable]:
    """Return the messages that may be dropped, in the order of dropping: interims of this session, other interims, and
    messages of low priority, each the oldest first."""
    own, others, lows = list[Droppable](), list[Droppable](), list[Droppable]()
    for queue in queues:
        for at, terms in enumerate(queue.terms or ()):
            if terms is None:
                continue
            if terms.interim_of:
                (own if terms.interim_of == session else others).append(Droppable(queue, at, True))
            elif may_drop_low and terms.priority == "low":
                lows.append(Droppable(queue, at, False))
    return own + others + lows


def to_drop(found: Sequence[Droppable], waiting: int, size: int, limits: OutboxLimits) -> Sequence[Droppable] | None:
    """Return those of the droppable messages that have to go. None: all together do not make enough room.

    :param waiting: how many messages wait now
    :param size: their size, including the new one
    """
    for dropped, each in enumerate(found, 1):
        size -= each.queue.cost_at(each.at)
        if limits.have_room(waiting - dropped, size):
            return found[:dropped]
    return None


class ToWithdraw(NamedTuple):
    """Which messages to withdraw.

    :ivar stored: the positions of messages that have a number, the newest first
    :ivar lowest: the lowest of their numbers
    :ivar transient: the positions of the transient messages behind them, each with the number before it
    """

    stored: Sequence[int] = ()
    lowest: int = 0
    transient: Sequence[tuple[int, int]] = ()


NOTHING_TO_WITHDRAW: Final = ToWithdraw()


def to_withdraw(queue: Queue, waiting: int, size: int, limits: OutboxLimits, least: int) -> ToWithdraw:
    """Choose messages that have a number of at least ``least``, from the newest to the oldest, until there is room. If
    all of them do not make enough room, nothing is chosen.

    :param waiting: how many messages wait now
    :param size: their size, including the new one
    """
    chosen: list[int] = []
    lowest = 0
    for at in reversed(queue.find(lambda found: found.number is not None and found.number >= max(1, least))):
        number = _number_at(queue, at)
        if number < lowest and limits.have_room(waiting, size):
            break
        chosen.append(at)
        lowest, waiting, size = number, waiting - 1, size - queue.cost_at(at)
    if not chosen or not limits.have_room(waiting, size):
        return NOTHING_TO_WITHDRAW
    behind = [at for at in queue.find(lambda found: found.number == 0) if at > chosen[-1]]
    after = [max(_number_at(queue, before) for before in chosen if before < at) for at in behind]
    return ToWithdraw(chosen, lowest, [*zip(behind, after, strict=True)])


def _number_at(queue: Queue, at: int) -> int:
    terms = queue.terms_at(at)
    return 0 if terms is None or terms.number is None else terms.number
