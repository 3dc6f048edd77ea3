"""Which records are routed here, and which are handed over to a sibling. Pure.

A *sibling* is another worker under the same parent. Each worker announces the devices that connect to it and leave it.
These announcements are hints: a sibling returns the records of a device that has left it, and they are routed here.

What must hold is the order of the records of each device. It is either *routed* here or *handed over* to one sibling,
and between the two it is *moving*: its records wait until all earlier ones have arrived.

====================  =========================================================  =======================================
a device              its records                                                until
====================  =========================================================  =======================================
routed                go to the router                                           a sibling announces it
joining (moving)      wait                                                       the router has routed all that came
                                                                                 before, and the sibling has received
                                                                                 what the relay has for it (a fence)
handed over           go to the sibling                                          the sibling announces that it has left,
                                                                                 returns a record, or ends; or the
                                                                                 device comes here, or to another one
leaving (moving)      wait, behind those that the sibling returns                the sibling has acknowledged all that
                                                                                 came before
====================  =========================================================  =======================================

From "leaving", a device goes to "routed", and from there on. What a sibling that ends has not acknowledged is routed
here: it may be sent twice, as after the end of a server that has read it.

A record for several devices, a user, a group or everyone would have to wait for all of them. So once there is one,
nothing is handed over until :data:`QUIET_S` after the last one: the phases below. The same goes for partitions that
another server has read before: some of its records may still be in a sibling's inbox of the relay, which only a fence
shows to be empty.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Final, NamedTuple, TypeAlias

from ..rules.records import Record
from .pieces import Delivery, Piece, Pieces, bytes_of, count_of, cut

QUIET_S: Final = 1.0
MAX_QUIET_S: Final = 60.0
"""After several attempts to begin that have failed."""
BEGIN_PATIENCE_S: Final = 1.0
"""How long batches wait for the router and the relay, which may be unavailable."""
MOST_RECORDS: Final = 1000
MOST_BYTES: Final = 1024 * 1024
"""Of the payloads in one portion. A single record may be larger."""


class Route(NamedTuple):
    """Give these records to the router, and report :meth:`Destinations.routed`. Routes are carried out in order."""

    number: int
    pieces: Pieces


class Ask(NamedTuple):
    """Send a fence to this sibling through the relay, behind everything else, until it is received. Report
    :meth:`Destinations.fenced`."""

    sibling: int
    number: int


Action: TypeAlias = Route | Ask
Actions: TypeAlias = list[Action]


class Phase(enum.Enum):
    """Whether records are handed over."""

    ON = "on"
    ENDING = "ending"  # batches wait until what was handed over is acknowledged
    OFF = "off"  # all is routed here
    BEGINNING = "beginning"  # batches wait until what was routed has left


class Portion(NamedTuple):
    """Records that are handed over together.

    :ivar number: from 1 on, without gaps
    :ivar seen: the sibling's announcements that were known when the records were assigned
    """

    number: int
    seen: int
    pieces: Pieces


class _Moving:
    """:ivar joins: the sibling that it is to be handed over to; None: it leaves one
    :ivar returned: records that the sibling had, earlier than those of ``waiting``
    """

    __slots__ = ("joins", "returned", "waiting")

    def __init__(self, joins: int | None) -> None:
        self.joins = joins
        self.returned: list[Piece] = []
        self.waiting: list[Piece] = []


class _Sibling:
    """What goes to one sibling."""

    __slots__ = (
        "acknowledged",
        "awaited",
        "awaited_since",
        "fence",
        "is_fenced",
        "joining",
        "leaving",
        "looked_at",
        "number",
        "open",
        "open_bytes",
        "open_records",
        "seen",
        "unacknowledged",
        "unsent",
    )

    def __init__(self) -> None:
        self.number = self.acknowledged = self.seen = self.fence = 0
        self.open: list[Piece] = []
        self.open_records = self.open_bytes = 0
        self.unsent: deque[Portion] = deque()
        self.unacknowledged: deque[Portion] = deque()
        # With the number after which a device may move.
        self.leaving: deque[tuple[int, str, _Moving]] = deque()
        self.joining: deque[tuple[int, str, _Moving]] = deque()
        self.awaited: list[tuple[str, _Moving]] | None = None  # the devices behind the fence that is under way
        self.awaited_since: tuple[int, float] | None = None  # the fence under way, and when it was first seen
        self.is_fenced = False  # in the phase BEGINNING
        self.looked_at = 0  # what it had acknowledged at the last look

    @property
    def is_idle(self) -> bool:
        return not (self.open or self.unacknowledged)

    def has_stopped(self) -> bool:
        """Whether it has acknowledged nothing since the last call, although there is something to acknowledge."""
        before, self.looked_at = self.looked_at, self.acknowledged
        return before == self.acknowledged and not self.is_idle

    @property
    def last(self) -> int:
        """The number of the latest portion, including the one that is still open."""
        return self.number + bool(self.open)

    def post(self, piece: Piece) -> None:
        """Assign records to it."""
        size = bytes_of(piece)
        if len(piece.indexes) <= MOST_RECORDS and size <= MOST_BYTES:
            self._add(piece, size)
        else:
            for part in cut(piece, MOST_RECORDS, MOST_BYTES):
                self._add(part, bytes_of(part))

    def _add(self, piece: Piece, size: int) -> None:
        records = len(piece.indexes)
        if self.open_records + records > MOST_RECORDS or self.open_bytes + size > MOST_BYTES:
            self.close()
        self.open.append(piece)
        self.open_records += records
        self.open_bytes += size

    def close(self) -> None:
        """What is assigned from now on belongs to another portion."""
        if self.open:
            self.number += 1
            portion = Portion(self.number, self.seen, self.open)
            self.open, self.open_records, self.open_bytes = [], 0, 0
            self.unsent.append(portion)
            self.unacknowledged.append(portion)


class Destinations:
    """The destinations of all devices. Not thread-safe.

    :param here: the devices that are connected to this worker: a live view"""

    def __init__(self, here: Container[str]) -> None:
        self._here = here
        self._siblings: dict[int, _Sibling] = {}
        self._holders: dict[str, int] = {}  # the sibling that has last announced a device
        self._where: dict[str, int | _Moving] = {}  # unless it is routed
        self._leaving = 0
        self._routing: dict[int, Pieces] = {}  # in the order of the numbers
        self._last_route = 0
        self._last_fence = 0  # of all siblings: one of an earlier link may still arrive
        self._phase = Phase.ON
        self._held: deque[Delivery] = deque()
        self._shared_at = self._began_at = -inf
        self._quiet_s = QUIET_S

    def __repr__(self) -> str:
        return f"<Destinations {self._phase.value}, {len(self._siblings)} siblings, {len(self._where)} devices>"

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def siblings(self) -> Iterable[int]:
        return self._siblings.keys()

    # -- records

    def take(self, delivery: Delivery, now: float, *, is_allowed: bool = True, may_begin: bool = True) -> Actions:
        """A batch has been read.

        :param is_allowed: False: route everything here
        :param may_begin: whether the relay is likely to pass a fence on now
        """
        if self._phase is Phase.ON:
            if is_allowed:
                actions = self._assign(delivery)
                if actions is not None:
                    return actions
            self._shared_at = now
            return [*self._end(), *self._hold(delivery)]
        if not is_allowed or _is_shared(delivery.records):
            self._shared_at = now
            if not is_allowed and self._phase is Phase.BEGINNING:
                return [*self._give_up_beginning(), self._route([_whole(delivery)])]
        elif self._phase is Phase.OFF and may_begin and now - self._shared_at >= self._quiet_s:
            self._phase, self._began_at = Phase.BEGINNING, now
            for sibling in self._siblings.values():
                sibling.is_fenced = False
        if self._phase is Phase.OFF:
            return [self._route([_whole(delivery)])]
        return self._hold(delivery)

    def _assign(self, delivery: Delivery) -> Actions | None:
        """None: a record is for several devices; nothing has changed."""
        where = self._where
        if not where:
            return [self._route([_whole(delivery)])]
        here: list[int] = []
        away: dict[int, list[int]] = {}
        waiting: list[tuple[_Moving, int]] = []
        for at, record in enumerate(delivery.records):
            address = record[0]
            to = where.get(address)  # type: ignore[arg-type]  # no other address is a key
            if to is None:
                if type(address) is not str:
                    return None
                here.append(at)
            elif type(to) is int:
                found = away.get(to)
                if found is None:
                    away[to] = [at]
                else:
                    found.append(at)
            else:
                waiting.append((to, at))  # type: ignore[arg-type]  # the only other type
        for number, indexes in away.items():
            self._siblings[number].post(Piece(delivery, indexes))
        for moving, at in waiting:
            moving.waiting.append(Piece(delivery, (at,)))
        return [self._route([Piece(delivery, here)])] if here else []

    def _route(self, pieces: Pieces) -> Route:
        self._last_route += 1
        self._routing[self._last_route] = pieces
        return Route(self._last_route, pieces)

    def routed(self, number: int) -> Actions:
        """The router is done with a route: what is for other servers is in the relay."""
        for piece in self._routing.pop(number, ()):
            piece.done()
        return self._after_routing()

    def failed(self, number: int) -> Actions:
        """The router has failed. What it has not sent is read again after a restart; nothing waits for it."""
        self._routing.pop(number, None)
        return self._after_routing()

    def _after_routing(self) -> Actions:
        if self._phase is Phase.BEGINNING:
            return self._begin()
        actions: Actions = []
        for sibling in self._siblings:
            actions += self._ask(sibling)
        return actions

    def _is_routed(self, number: int) -> bool:
        """Whether the router is done with everything up to this route."""
        return next(iter(self._routing), inf) > number

    # -- siblings

    def up(self, number: int) -> Actions:
        """A sibling can be reached."""
        self._siblings[number] = _Sibling()
        return self._begin() if self._phase is Phase.BEGINNING else []

    def down(self, number: int) -> Actions:
        """A sibling cannot be reached any more. What it has not acknowledged is routed here."""
        sibling = self._siblings.get(number)
        if sibling is None:
            return []
        self._holders = {device_id: of for device_id, of in self._holders.items() if of != number}
        for device_id in [device_id for device_id, to in self._where.items() if to == number]:
            self._leave(device_id, sibling)
        sibling.close()
        for portion in sibling.unacknowledged:
            for piece in portion.pieces:
                self._take_back(sibling, piece, piece.indexes)
        sibling.unacknowledged.clear()
        sibling.acknowledged = sibling.number
        joining = [(device_id, moving) for _, device_id, moving in sibling.joining] + (sibling.awaited or [])
        sibling.joining.clear()
        sibling.awaited = None
        del self._siblings[number]
        return [*self._cancel(joining), *self._let_go(sibling), *self._go_on()]

    def announced(self, number: int, upto: int, here: Iterable[str], gone: Iterable[str]) -> Actions:
        """A sibling has announced changes, of which the latest has the number ``upto``.

        :param here: devices that are connected to it now, also if they were before
        :param gone: devices that are not
        """
        sibling = self._siblings[number]
        sibling.close()
        sibling.seen = upto
        for device_id in gone:
            if self._holders.get(device_id) == number:
                del self._holders[device_id]
            if self._phase is Phase.ON and self._where.get(device_id) == number:
                self._leave(device_id, sibling)
        for device_id in here:
            self._holders[device_id] = number
            if self._phase is Phase.ON:
                to = self._where.get(device_id)
                if to is None:
                    self._join(device_id)
                elif isinstance(to, int):
                    self._leave(device_id, self._siblings[to])
        return self._settle()

    def acknowledged(self, number: int, upto: int, returned: Mapping[int, Sequence[int]]) -> Actions:
        """A sibling has taken the portions up to this number.

        :param returned: by portion, the positions of the records that it has not taken
        """
        sibling = self._siblings[number]
        while sibling.unacknowledged and sibling.unacknowledged[0].number <= upto:
            portion = sibling.unacknowledged.popleft()
            back = frozenset(returned.get(portion.number, ()))
            begin = 0
            for piece in portion.pieces:
                if back:
                    indexes = [at for position, at in enumerate(piece.indexes, begin) if position in back]
                    self._take_back(sibling, piece, indexes)
                    piece.delivery.done(len(piece.indexes) - len(indexes))
                    begin += len(piece.indexes)
                else:
                    piece.done()
        sibling.acknowledged = max(upto, sibling.acknowledged)
        return [*self._let_go(sibling), *self._go_on()]

    def fenced(self, number: int, fence: int) -> Actions:
        """A sibling has received a fence."""
        sibling = self._siblings[number]
        if not self.awaits(number, fence):
            return []
        awaited, sibling.awaited, sibling.is_fenced = sibling.awaited or [], None, True
        if self._phase is Phase.BEGINNING:
            return self._begin()
        others = []
        for device_id, moving in awaited:
            if self._where.get(device_id) is not moving:
                continue
            if self._target(device_id) == number:
                self._where[device_id] = number
                for piece in moving.waiting:
                    sibling.post(piece)
            else:
                others.append((device_id, moving))
        return [*self._cancel(others), *self._settle()]

    def awaits(self, number: int, fence: int) -> bool:
        """Whether this fence is to be sent again if it was lost."""
        sibling = self._siblings.get(number)
        return sibling is not None and sibling.awaited is not None and sibling.fence == fence

    def portions(self, number: int) -> Iterator[Portion]:
        """What is to be sent to a sibling. A portion that was yielded counts as sent."""
        sibling = self._siblings[number]
        sibling.close()
        while sibling.unsent:
            yield sibling.unsent.popleft()

    def gathered(self, number: int) -> int:
        """How many records are to be sent to a sibling."""
        sibling = self._siblings[number]
        return count_of(sibling.open) + sum([count_of(portion.pieces) for portion in sibling.unsent])

    # -- this worker's devices

    def arrived(self, device_id: str) -> Actions:
        """A device has connected to this worker."""
        to = self._where.get(device_id)
        if isinstance(to, int) and self._phase is Phase.ON:
            self._leave(device_id, self._siblings[to])
        return self._settle()

    def left(self, device_id: str) -> Actions:
        """A device has left this worker."""
        if self._phase is Phase.ON and device_id not in self._where:
            self._join(device_id)
        return self._settle()

    # -- moving

    def _target(self, device_id: str) -> int | None:
        """The sibling that a device is to be handed over to; None: it is to be routed here."""
        return None if self._phase is not Phase.ON or device_id in self._here else self._holders.get(device_id)

    def _join(self, device_id: str) -> None:
        """A device that is routed is handed over, if a sibling has it."""
        target = self._target(device_id)
        if target is not None:
            moving = self._where[device_id] = _Moving(target)
            self._siblings[target].joining.append((self._last_route, device_id, moving))

    def _cancel(self, joining: Iterable[tuple[str, _Moving]]) -> Actions:
        """These devices are routed after all, or join another sibling afterwards."""
        waiting: list[Piece] = []
        again = []
        for device_id, moving in joining:
            if self._where.get(device_id) is moving:
                del self._where[device_id]
                waiting += moving.waiting
                again.append(device_id)
        return self._route_and_join(waiting, again)

    def _leave(self, device_id: str, sibling: _Sibling) -> None:
        moving = self._where[device_id] = _Moving(None)
        self._leaving += 1
        sibling.leaving.append((sibling.last, device_id, moving))

    def _take_back(self, sibling: _Sibling, piece: Piece, indexes: Iterable[int]) -> None:
        records = piece.delivery.records
        for at in indexes:
            device_id = records[at][0]
            assert isinstance(device_id, str)
            if isinstance(self._where[device_id], int):
                self._leave(device_id, sibling)
            moving = self._where[device_id]
            assert isinstance(moving, _Moving)
            moving.returned.append(Piece(piece.delivery, (at,)))

    def _let_go(self, sibling: _Sibling) -> Actions:
        """Route the devices whose earlier records have all been acknowledged."""
        pieces: list[Piece] = []
        again = []
        while sibling.leaving and sibling.leaving[0][0] <= sibling.acknowledged:
            _, device_id, moving = sibling.leaving.popleft()
            self._leaving -= 1
            del self._where[device_id]
            pieces += moving.returned
            pieces += moving.waiting
            again.append(device_id)
        return self._route_and_join(pieces, again)

    def _route_and_join(self, pieces: Pieces, device_ids: Iterable[str]) -> Actions:
        actions: Actions = [self._route(pieces)] if pieces else []
        for device_id in device_ids:
            self._join(device_id)
        for sibling in self._siblings:
            actions += self._ask(sibling)
        return actions

    def _ask(self, number: int) -> Actions:
        """Send a fence for the devices that may follow it."""
        sibling = self._siblings[number]
        if sibling.awaited is not None or not sibling.joining or not self._is_routed(sibling.joining[0][0]):
            return []
        awaited = []
        while sibling.joining and self._is_routed(sibling.joining[0][0]):
            _, device_id, moving = sibling.joining.popleft()
            awaited.append((device_id, moving))
        return [self._fence(number, awaited)]

    def _fence(self, number: int, awaited: list[tuple[str, _Moving]]) -> Ask:
        sibling = self._siblings[number]
        self._last_fence += 1
        sibling.awaited, sibling.fence = awaited, self._last_fence
        return Ask(number, sibling.fence)

    def _settle(self) -> Actions:
        """After devices have begun to move: some need not wait."""
        actions: Actions = []
        for sibling in list(self._siblings.values()):
            actions += self._let_go(sibling)
        for number in self._siblings:
            actions += self._ask(number)
        return [*actions, *self._go_on()]

    # -- phases

    def look(self, now: float) -> Actions:
        """Call it now and then."""
        if self._phase is Phase.BEGINNING and now - self._began_at >= BEGIN_PATIENCE_S:
            self._stay_quiet(now)
            return self._give_up_beginning()
        siblings = self._siblings.values()
        is_overdue = any([self._is_overdue(sibling, now) for sibling in siblings])
        hangs = any([sibling.has_stopped() for sibling in siblings])
        if self._phase is Phase.ON and is_overdue and not hangs:
            # The sibling cannot read what the relay has for it: the devices that it has, or had, must not wait. All
            # records would wait for one that hangs, until it is killed.
            self._stay_quiet(now)
            return [*self._end(), *self._go_on()]
        return []

    @staticmethod
    def _is_overdue(sibling: _Sibling, now: float) -> bool:
        if sibling.awaited is None:
            sibling.awaited_since = None
        elif sibling.awaited_since is None or sibling.awaited_since[0] != sibling.fence:
            sibling.awaited_since = (sibling.fence, now)
        return sibling.awaited_since is not None and now - sibling.awaited_since[1] >= BEGIN_PATIENCE_S

    def _stay_quiet(self, now: float) -> None:
        """Another fence was not received in time: begin again later than the last time."""
        self._shared_at, self._quiet_s = now, min(2 * self._quiet_s, MAX_QUIET_S)

    def _give_up_beginning(self) -> Actions:
        for sibling in self._siblings.values():
            sibling.awaited = None
        return self._turn_off()

    def _hold(self, delivery: Delivery) -> Actions:
        self._held.append(delivery)
        return self._go_on()

    def _go_on(self) -> Actions:
        if self._phase is Phase.BEGINNING:
            return self._begin()
        if self._phase is not Phase.ENDING or self._leaving or not all(of.is_idle for of in self._siblings.values()):
            return []
        return self._turn_off()

    def _turn_off(self) -> Actions:
        self._phase = Phase.OFF
        self._where.clear()
        held, self._held = self._held, deque()
        return [self._route([_whole(delivery)]) for delivery in held]

    def _end(self) -> Actions:
        """Hand nothing over from now on."""
        self._phase = Phase.ENDING
        joining = [(device_id, to) for device_id, to in self._where.items() if isinstance(to, _Moving)]
        for sibling in self._siblings.values():
            sibling.joining.clear()
            sibling.awaited = None
        return self._cancel([(device_id, moving) for device_id, moving in joining if moving.joins is not None])

    def _begin(self) -> Actions:
        """Hand records over again, once what was routed before has arrived."""
        if self._routing:
            return []
        actions: Actions = []
        for number, sibling in self._siblings.items():
            if not sibling.is_fenced and sibling.awaited is None:
                actions.append(self._fence(number, []))
        if not all(sibling.is_fenced for sibling in self._siblings.values()):
            return actions
        self._phase, self._quiet_s = Phase.ON, QUIET_S
        self._where.update({device_id: of for device_id, of in self._holders.items() if device_id not in self._here})
        held, self._held = self._held, deque()
        while held:
            delivery = held.popleft()
            found = self._assign(delivery)
            if found is None:
                actions += self._end()
                self._held.extend([delivery, *held])
                return [*actions, *self._go_on()]
            actions += found
        return actions


def _whole(delivery: Delivery) -> Piece:
    return Piece(delivery, range(len(delivery.records)))


def _is_shared(records: Sequence[Record]) -> bool:
    """Whether one of them is for several devices."""
    return any([type(record[0]) is not str for record in records])
