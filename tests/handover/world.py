"""Three workers with one reader each, and everything between them as slow as chance will have it. Pure.

The router, the relay and presence are the simplest that keep what theirs promise: the router is in order and looks up
where a device is; the relay keeps each sender's order; a receiver drops what it has taken already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from cocoa_tornado.handover.announcements import Announcements
from cocoa_tornado.handover.pieces import Delivery, merged
from cocoa_tornado.handover.routes import Route
from cocoa_tornado.handover.rules import Action, Ask, Destinations
from cocoa_tornado.routing.address import Everyone
from cocoa_tornado.rules.records import Record

WORKERS = (1, 2, 3)
DEVICES = ("a", "b", "c", "here")

Origin = tuple[str, int]


@dataclass
class Device:
    """:ivar at: its worker; 0: none
    :ivar changes: how often that has changed
    :ivar got: on its present connection; :ivar ever: on any
    """

    at: int = 0
    changes: int = 0
    got: list[Origin] = field(default_factory=list)
    ever: set[Origin] = field(default_factory=set)


@dataclass
class Message:
    """A record on its way: its origin, its device, and the device's changes when it was read."""

    origin: Origin
    address: Any
    changes: dict[str, int]


@dataclass
class Read:
    """A record for a device that was connected when it was read."""

    origin: Origin
    device_id: str
    changes: int


class Worker:
    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.here: set[str] = set()
        self.rules: Destinations = world.make_rules(self.here)
        self.announcements: Announcements = world.make_announcements()
        self.taken: dict[tuple[str, str], int] = {}
        self.routing: deque[Route] = deque()
        self.due: deque[Action] = deque()
        self.is_acting = False
        self.is_allowed = self.has_lease = True
        self.fences: dict[int, list[int]] = {}
        self.acknowledged: dict[int, int] = {}
        self.returned: dict[int, dict[int, list[int]]] = {}
        self.not_done = 0
        self.has_read: list[Read] = []

    # the shell

    def act(self, actions: Sequence[Action]) -> None:
        self.due += actions
        if self.is_acting:
            return
        self.is_acting = True
        while self.due:
            action = self.due.popleft()
            if isinstance(action, Ask):
                self.world.relay[self.number, action.sibling].append(action)
            else:
                self.routing.append(action)
                if self.world.random.random() < 0.5:
                    self.route_all()
        self.is_acting = False

    def read(self, records: Sequence[Record], offsets: Sequence[int]) -> None:
        source = f"p{self.number}"
        self.not_done += 1
        delivery = Delivery(records, offsets, [(source, len(records))], self.on_done)
        self.act(self.rules.take(delivery, self.world.now, is_allowed=self.is_allowed))

    def change_lease(self) -> None:
        self.has_lease = not self.has_lease
        if self.has_lease:
            self.announcements.resume()
        else:
            self.announcements.suspend()

    def on_done(self) -> None:
        self.not_done -= 1

    def send(self, to: int) -> None:
        """News and portions, as they are now."""
        upto, here, gone = self.announcements.take(to)
        news = (upto, here, gone, self.acknowledged.get(to, 0), self.returned.pop(to, {}), self.fences.pop(to, []))
        self.world.links[self.number, to].append(news)
        for portion in self.rules.portions(to):
            whole = merged(portion.pieces)
            self.world.links[self.number, to].append((portion.number, portion.seen, whole))

    def receive(self, sender: int, message: tuple[Any, ...]) -> None:
        if len(message) == 3:
            number, seen, whole = message
            to_return = self.announcements.to_return([record.address for record in whole.records], seen)
            sources = [name for name, count in whole.sources for _ in range(count)]
            for at, record in enumerate(whole.records):
                if at not in to_return:
                    assert self.has_lease
                    self.deliver(record.address, (sources[at], whole.offsets[at]))
            self.acknowledged[sender] = number
            if to_return:
                self.returned.setdefault(sender, {})[number] = to_return
            return
        upto, here, gone, acknowledged, returned, fences = message
        self.act(self.rules.acknowledged(sender, acknowledged, returned))
        self.act(self.rules.announced(sender, upto, here, gone))
        for fence in fences:
            self.act(self.rules.fenced(sender, fence))

    # the router

    def route_all(self) -> None:
        while self.routing:
            self.route_next()

    def route_next(self) -> None:
        route = self.routing.popleft()
        whole = merged(route.pieces)
        sources = [name for name, count in whole.sources for _ in range(count)]
        for at, record in enumerate(whole.records):
            origin = (sources[at], whole.offsets[at])
            message = Message(origin, record.address, self.world.changes_at[origin])
            if isinstance(record.address, str):
                if record.address in self.here:
                    self.deliver(record.address, origin)
                    continue
                holder = self.world.devices[record.address].at
                if holder:
                    self.world.relay[self.number, holder].append(message)
                else:
                    self.world.drop(record.address, origin)
                continue
            self.take(message)
            for other in WORKERS:
                if other != self.number:
                    self.world.relay[self.number, other].append(message)
        self.act(self.rules.routed(route.number))

    def take(self, message: Message) -> None:
        """A message that the router is to send to those of its devices that are here."""
        if not isinstance(message.address, str):
            for device_id in sorted(self.here):
                self.deliver(device_id, message.origin)
        elif message.address in self.here:
            self.deliver(message.address, message.origin)
        else:
            self.world.drop(message.address, message.origin)

    def deliver(self, device_id: str, origin: Origin) -> None:
        source, offset = origin
        device = self.world.devices[device_id]
        if self.taken.get((device_id, source), -1) >= offset:
            assert origin in device.ever, f"{origin} came to {device_id} too late, and was dropped"
            return
        self.taken[device_id, source] = offset
        assert device_id in self.here
        assert all(other[1] < offset for other in device.got if other[0] == source), f"{device_id}: {origin} late"
        device.got.append(origin)
        device.ever.add(origin)


class World:
    def __init__(
        self,
        random: Random,
        make_rules: type[Destinations] = Destinations,
        make_announcements: type[Announcements] = Announcements,
    ) -> None:
        self.random, self.make_rules, self.make_announcements = random, make_rules, make_announcements
        self.now = 0.0
        self.devices = {name: Device() for name in DEVICES}
        self.changes_at: dict[Origin, dict[str, int]] = {}
        self.offsets = dict.fromkeys(WORKERS, 0)
        pairs = [(one, other) for one in WORKERS for other in WORKERS if one != other]
        self.links: dict[tuple[int, int], deque[Any]] = {pair: deque() for pair in pairs}
        self.relay: dict[tuple[int, int], deque[Any]] = {pair: deque() for pair in pairs}
        self.up: set[tuple[int, int]] = set()
        self.workers = {number: Worker(self, number) for number in WORKERS}
        for one, other in pairs:
            if one < other:
                self.connect(one, other)

    def drop(self, device_id: str, origin: Origin) -> None:
        changes = self.changes_at[origin][device_id]
        device = self.devices[device_id]
        assert not device.at or device.changes != changes or origin in device.ever, f"{origin} lost for {device_id}"

    # what happens

    def connect(self, one: int, other: int) -> None:
        """A link between two workers."""
        self.up |= {(one, other), (other, one)}
        for me, sibling in ((one, other), (other, one)):
            worker = self.workers[me]
            worker.announcements.up(sibling)
            worker.acknowledged.pop(sibling, None)
            worker.act(worker.rules.up(sibling))

    def cut(self, one: int, other: int) -> None:
        self.up -= {(one, other), (other, one)}
        for me, sibling in ((one, other), (other, one)):
            self.links[me, sibling].clear()
            worker = self.workers[me]
            worker.returned.pop(sibling, None)
            worker.fences.pop(sibling, None)
            worker.announcements.down(sibling)
            worker.act(worker.rules.down(sibling))

    def kill(self, number: int) -> None:
        """A worker dies, and another takes its number."""
        for device in self.devices.values():
            if device.at == number:
                device.at, device.changes, device.got = 0, device.changes + 1, []
        siblings = [other for other in WORKERS if (number, other) in self.up]
        self.workers[number] = Worker(self, number)
        for other in WORKERS:
            if other != number:
                self.relay[number, other].clear()
                self.relay[other, number].clear()
                self.links[number, other].clear()
                self.links[other, number].clear()
        for other in siblings:
            self.up -= {(number, other), (other, number)}
            worker = self.workers[other]
            worker.returned.pop(number, None)
            worker.fences.pop(number, None)
            worker.announcements.down(number)
            worker.act(worker.rules.down(number))
        for other in siblings:
            self.connect(number, other)

    def move(self, device_id: str, to: int) -> None:
        device = self.devices[device_id]
        if device.at:
            left = self.workers[device.at]
            device.at, device.changes, device.got = 0, device.changes + 1, []
            left.here.discard(device_id)
            left.announcements.left(device_id)
            left.act(left.rules.left(device_id))
        if to:
            device.at, device.changes = to, device.changes + 1
            worker = self.workers[to]
            worker.here.add(device_id)
            worker.announcements.arrived(device_id)
            worker.act(worker.rules.arrived(device_id))

    def read(self, number: int, device_ids: Sequence[str], *, is_shared: bool = False) -> None:
        first = self.offsets[number]
        records = [Record(device_id, b"{}", 0) for device_id in device_ids]
        if is_shared:
            records.append(Record(Everyone(), b"{}", 0))
        offsets = range(first, first + len(records))
        self.offsets[number] = offsets.stop
        for record, offset in zip(records, offsets, strict=True):
            origin = (f"p{number}", offset)
            self.changes_at[origin] = {name: device.changes for name, device in self.devices.items()}
            for device_id in DEVICES if record.address == Everyone() else [str(record.address)]:
                device = self.devices[device_id]
                if device.at:
                    self.workers[number].has_read.append(Read(origin, device_id, device.changes))
        self.workers[number].read(records, offsets)

    def hand_over(self, pair: tuple[int, int]) -> None:
        if self.links[pair]:
            self.workers[pair[1]].receive(pair[0], self.links[pair].popleft())

    def relay_next(self, pair: tuple[int, int]) -> None:
        if not self.relay[pair]:
            return
        message = self.relay[pair].popleft()
        sender, receiver = pair
        if isinstance(message, Ask):
            if pair in self.up:
                self.workers[receiver].fences.setdefault(sender, []).append(message.number)
        else:
            self.workers[receiver].take(message)

    # chance

    def step(self) -> None:
        random = self.random
        pairs = sorted(self.links)
        kind = random.randrange(100)
        if kind < 30:
            self.read(random.choice(WORKERS), random.choices(DEVICES, k=random.randint(1, 3)))
        elif kind < 50:
            pair = random.choice(pairs)
            if pair in self.up:
                self.workers[pair[0]].send(pair[1])
        elif kind < 65:
            self.hand_over(random.choice(pairs))
        elif kind < 78:
            self.relay_next(random.choice(pairs))
        elif kind < 84:
            worker = self.workers[random.choice(WORKERS)]
            if worker.routing:
                worker.route_next()
        elif kind < 94:
            self.move(random.choice(DEVICES), random.choice((0, 1, 2, 3)))
        elif kind < 96:
            self.read(random.choice(WORKERS), random.choices(DEVICES, k=1), is_shared=True)
        elif kind < 98:
            self.now += 0.6
            worker = self.workers[random.choice(WORKERS)]
            worker.act(worker.rules.look(self.now))
        elif kind < 99:
            one, other = random.choice([pair for pair in pairs if pair[0] < pair[1]])
            if (one, other) in self.up:
                self.cut(one, other)
            else:
                self.connect(one, other)
        else:
            self.kill(random.choice(WORKERS))

    def settle(self) -> None:
        """Everything arrives."""
        for _ in range(60):
            for worker in self.workers.values():
                if not worker.has_lease:
                    worker.change_lease()
                worker.route_all()
                worker.act(worker.rules.look(self.now))
            for pair in sorted(self.links):
                if pair in self.up:
                    self.workers[pair[0]].send(pair[1])
                while self.links[pair]:
                    self.hand_over(pair)
                while self.relay[pair]:
                    self.relay_next(pair)

    def check(self) -> None:
        """Once it has settled."""
        for worker in self.workers.values():
            assert worker.not_done == 0, f"{worker.not_done} batches are not done"
            for read in worker.has_read:
                device = self.devices[read.device_id]
                assert device.changes != read.changes or read.origin in device.ever, f"{read} is lost"


def run(random: Random, steps: int, *, with_outages: bool = False, **kinds: Any) -> World:
    """:param with_outages: leases end and become valid again"""
    world = World(random, **kinds)
    for _ in range(steps):
        world.step()
        if with_outages and random.random() < 0.04:
            world.workers[random.choice(WORKERS)].change_lease()
    world.settle()
    world.check()
    return world
