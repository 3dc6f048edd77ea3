"""Which records are routed here, and which are handed over to a sibling. Pure.

A *sibling* is another worker under the same parent. Each worker announces the devices that connect to it and leave it.
These announcements are hints: a sibling returns the records of a device that has left it, and they are routed here.

The rules keep the order of the records of each device. A device is either *routed* here or *handed over* to one
sibling, and between the two it is *moving*: its records wait until all earlier ones have arrived.

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

After "leaving", a device is "routed". Records that a sibling has not acknowledged when it ends are routed here: they
may be sent twice, as after the end of a server that has read them.

A record for several devices, a user, a group or everyone would have to wait for all of them. So once there is one,
nothing is handed over until ``routes.QUIET_S`` after the last one: the phases below. The same goes for partitions that
another server has read before: some of its records may still be in a sibling's inbox of the relay, which only a fence
shows to be empty.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from ..rules.records import Record
from .pieces import Delivery, Piece, Pieces
from .portions import Portion
from .routes import BEGIN_PATIENCE_S, Quiet, Route, Routes
from .siblings import Fence, Mover, Moving, Sibling


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


class Destinations:
    """The destinations of all devices. Not thread-safe.

    :param here: the devices that are connected to this worker: a live view"""

    def __init__(self, here: Container[str]) -> None:
        self._here = here
        self._siblings: dict[int, Sibling] = {}
        self._holders: dict[str, int] = {}  # the sibling that has last announced a device
        self._where: dict[str, int | Moving] = {}  # unless it is routed
        self._leaving = 0
        self._routes = Routes()
        self._last_fence = 0  # of all siblings: one of an earlier link may still arrive
        self._phase = Phase.ON
        self._held: deque[Delivery] = deque()
        self._quiet = Quiet()

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
            self._quiet.disturb(now)
            return [*self._end(), *self._hold(delivery)]
        if not is_allowed or _is_shared(delivery.records):
            self._quiet.disturb(now)
            if not is_allowed and self._phase is Phase.BEGINNING:
                return [*self._give_up_beginning(), self._routes.begin([_whole(delivery)])]
        elif self._phase is Phase.OFF and may_begin and self._quiet.is_over(now):
            self._phase = Phase.BEGINNING
            self._quiet.begin(now)
            for sibling in self._siblings.values():
                sibling.is_fenced = False
        if self._phase is Phase.OFF:
            return [self._routes.begin([_whole(delivery)])]
        return self._hold(delivery)

    def _assign(self, delivery: Delivery) -> Actions | None:
        """None: a record is for several devices; nothing has changed."""
        where = self._where
        if not where:
            return [self._routes.begin([_whole(delivery)])]
        here: list[int] = []
        away: dict[int, list[int]] = {}
        waiting: list[tuple[Moving, int]] = []
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
            self._siblings[number].portions.post(Piece(delivery, indexes))
        for moving, at in waiting:
            moving.waiting.append(Piece(delivery, (at,)))
        return [self._routes.begin([Piece(delivery, here)])] if here else []

    def routed(self, number: int) -> Actions:
        """The router is done with a route: messages for other servers are in the relay."""
        for piece in self._routes.end(number):
            piece.done()
        return self._after_routing()

    def failed(self, number: int) -> Actions:
        """The router has failed. Records that it has not sent are read again after a restart; no other record waits for
        them."""
        self._routes.end(number)
        return self._after_routing()

    def _after_routing(self) -> Actions:
        if self._phase is Phase.BEGINNING:
            return self._begin()
        actions: Actions = []
        for sibling in self._siblings:
            actions += self._ask(sibling)
        return actions

    # -- siblings

    def up(self, number: int) -> Actions:
        """A sibling can be reached."""
        self._siblings[number] = Sibling()
        return self._begin() if self._phase is Phase.BEGINNING else []

    def down(self, number: int) -> Actions:
        """A sibling cannot be reached any more. Records that it has not acknowledged are routed here."""
        sibling = self._siblings.get(number)
        if sibling is None:
            return []
        self._holders = {device_id: of for device_id, of in self._holders.items() if of != number}
        for device_id in [device_id for device_id, to in self._where.items() if to == number]:
            self._leave(device_id, sibling)
        for portion in sibling.portions.take_back():
            for piece in portion.pieces:
                self._take_back(sibling, piece, piece.indexes)
        joining = sibling.forget_joining()
        del self._siblings[number]
        return [*self._cancel(joining), *self._let_go(sibling), *self._go_on()]

    def announced(self, number: int, upto: int, here: Iterable[str], gone: Iterable[str]) -> Actions:
        """A sibling has announced changes, of which the latest has the number ``upto``.

        :param here: devices that are connected to it now, also if they were before
        :param gone: devices that are not
        """
        sibling = self._siblings[number]
        sibling.portions.close()
        sibling.portions.seen = upto
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
        for portion in sibling.portions.acknowledge(upto):
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
        return [*self._let_go(sibling), *self._go_on()]

    def fenced(self, number: int, fence: int) -> Actions:
        """A sibling has received a fence."""
        sibling = self._siblings[number]
        if not self.awaits(number, fence):
            return []
        devices = [] if sibling.fence is None else sibling.fence.devices
        sibling.fence, sibling.is_fenced = None, True
        if self._phase is Phase.BEGINNING:
            return self._begin()
        others = []
        for device_id, moving in devices:
            if self._where.get(device_id) is not moving:
                continue
            if self._target(device_id) == number:
                self._where[device_id] = number
                for piece in moving.waiting:
                    sibling.portions.post(piece)
            else:
                others.append((device_id, moving))
        return [*self._cancel(others), *self._settle()]

    def awaits(self, number: int, fence: int) -> bool:
        """Whether this fence is to be sent again if it was lost."""
        sibling = self._siblings.get(number)
        return sibling is not None and sibling.fence is not None and sibling.fence.number == fence

    def portions(self, number: int) -> Iterator[Portion]:
        """Yield the portions to send to a sibling. A yielded portion counts as sent."""
        return self._siblings[number].portions.to_send()

    def gathered(self, number: int) -> int:
        """How many records are to be sent to a sibling."""
        return self._siblings[number].portions.gathered()

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
            moving = self._where[device_id] = Moving(target)
            self._siblings[target].joining.append((self._routes.last, (device_id, moving)))

    def _cancel(self, joining: Iterable[Mover]) -> Actions:
        """These devices are routed after all, or join another sibling afterwards."""
        waiting: list[Piece] = []
        again = []
        for device_id, moving in joining:
            if self._where.get(device_id) is moving:
                del self._where[device_id]
                waiting += moving.waiting
                again.append(device_id)
        return self._route_and_join(waiting, again)

    def _leave(self, device_id: str, sibling: Sibling) -> None:
        moving = self._where[device_id] = Moving(None)
        self._leaving += 1
        sibling.leaves(device_id, moving)

    def _take_back(self, sibling: Sibling, piece: Piece, indexes: Iterable[int]) -> None:
        records = piece.delivery.records
        for at in indexes:
            device_id = records[at][0]
            assert isinstance(device_id, str)
            if isinstance(self._where[device_id], int):
                self._leave(device_id, sibling)
            moving = self._where[device_id]
            assert isinstance(moving, Moving)
            moving.returned.append(Piece(piece.delivery, (at,)))

    def _let_go(self, sibling: Sibling) -> Actions:
        """Route the devices whose earlier records have all been acknowledged."""
        pieces: list[Piece] = []
        again = []
        for device_id, moving in sibling.left():
            self._leaving -= 1
            del self._where[device_id]
            pieces += moving.returned
            pieces += moving.waiting
            again.append(device_id)
        return self._route_and_join(pieces, again)

    def _route_and_join(self, pieces: Pieces, device_ids: Iterable[str]) -> Actions:
        actions: Actions = [self._routes.begin(pieces)] if pieces else []
        for device_id in device_ids:
            self._join(device_id)
        for sibling in self._siblings:
            actions += self._ask(sibling)
        return actions

    def _ask(self, number: int) -> Actions:
        """Send a fence for the devices that may follow it."""
        sibling = self._siblings[number]
        if sibling.fence is not None or not sibling.joining or not self._routes.are_done(sibling.joining[0][0]):
            return []
        devices = []
        while sibling.joining and self._routes.are_done(sibling.joining[0][0]):
            devices.append(sibling.joining.popleft()[1])
        return [self._fence(number, devices)]

    def _fence(self, number: int, devices: list[Mover]) -> Ask:
        self._last_fence += 1
        self._siblings[number].fence = Fence(self._last_fence, devices)
        return Ask(number, self._last_fence)

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
        """Check the phase; call it periodically."""
        if self._phase is Phase.BEGINNING and self._quiet.takes_too_long(now):
            self._quiet.fail(now)
            return self._give_up_beginning()
        siblings = self._siblings.values()
        is_overdue = any([of.fence is not None and of.fence.age_s(now) >= BEGIN_PATIENCE_S for of in siblings])
        hangs = any([of.portions.has_stopped() for of in siblings])
        if self._phase is Phase.ON and is_overdue and not hangs:
            # The sibling cannot read its inbox in the relay: the devices that it has, or had, must not wait. All
            # records would wait for one that hangs, until it is killed.
            self._quiet.fail(now)
            return [*self._end(), *self._go_on()]
        return []

    def _give_up_beginning(self) -> Actions:
        for sibling in self._siblings.values():
            sibling.fence = None
        return self._turn_off()

    def _hold(self, delivery: Delivery) -> Actions:
        self._held.append(delivery)
        return self._go_on()

    def _go_on(self) -> Actions:
        if self._phase is Phase.BEGINNING:
            return self._begin()
        if (
            self._phase is not Phase.ENDING
            or self._leaving
            or not all(of.portions.is_idle for of in self._siblings.values())
        ):
            return []
        return self._turn_off()

    def _turn_off(self) -> Actions:
        self._phase = Phase.OFF
        self._where.clear()
        held, self._held = self._held, deque()
        return [self._routes.begin([_whole(delivery)]) for delivery in held]

    def _end(self) -> Actions:
        """Hand nothing over from now on."""
        self._phase = Phase.ENDING
        joining = [(device_id, to) for device_id, to in self._where.items() if isinstance(to, Moving)]
        for sibling in self._siblings.values():
            sibling.forget_joining()
        return self._cancel([(device_id, moving) for device_id, moving in joining if moving.joins is not None])

    def _begin(self) -> Actions:
        """Hand records over again, once the records that were routed before have arrived."""
        if self._routes:
            return []
        actions: Actions = []
        for number, sibling in self._siblings.items():
            if not sibling.is_fenced and sibling.fence is None:
                actions.append(self._fence(number, []))
        if not all(sibling.is_fenced for sibling in self._siblings.values()):
            return actions
        self._phase = Phase.ON
        self._quiet.succeed()
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
