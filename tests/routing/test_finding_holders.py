"""The relay finds the holders of its messages: through all failures and on every path, no message is overtaken by a
later one for its device, and a device that does not move gets every message."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.counters import Counters
from cocoa_tornado.hub import Hub
from cocoa_tornado.presence.grants import ConnectionDelivery, SlotLimits
from cocoa_tornado.presence.local import LocalPresence
from cocoa_tornado.presence.port import Holder
from cocoa_tornado.relay.memory import MemoryRelay
from cocoa_tornado.relay.messages import Forward, ForwardedMessage, RelayMessage
from cocoa_tornado.relay.port import Fate
from cocoa_tornado.routing.address import Group
from cocoa_tornado.routing.router import Router
from cocoa_tornado.rules.claims import Generation
from cocoa_tornado.rules.records import Record

from ..clients import FakeClient, connect
from ..profiles import examples

ME = "me"
STAYS, LOCAL, MOVES = "stays", "local", "moves"


class World:
    """Who holds which device, what Redis has yet to execute, and what the devices have got."""

    def __init__(self) -> None:
        self.holders: dict[str, str] = {STAYS: "b"}
        self.stamp = "1:run"
        self.scripts: deque[tuple[Callable[[], list[Fate]], Callable[[list[Fate]], None], int, bool]] = deque()
        self.look_ups: deque[Callable[[], None]] = deque()
        self.got: dict[str, list[int]] = {}
        self.overtaken: list[tuple[str, int]] = []

    def take(self, device_id: str, offset: int) -> None:
        """A server drops messages that its device has taken, and older ones."""
        got = self.got.setdefault(device_id, [])
        if offset > max(got, default=-1):
            got.append(offset)
        elif offset not in got:
            self.overtaken.append((device_id, offset))

    def execute(self, outcome: str) -> None:
        """:param outcome: ``lost``: the reply does not arrive; ``unsent``: nor did the command. This end joins again.
        What was looked up is always done: after a loss, ``_route_again`` keeps no order
        """
        if not self.scripts:
            return
        act, reply, count, finds_holders = self.scripts.popleft()
        if outcome == "done" or not finds_holders:
            reply(act())
            return
        if outcome == "lost":
            act()
        reply([Fate.LOST] * count)
        waiting, self.scripts = self.scripts, deque()
        for script in waiting:
            if script[3]:
                script[1]([Fate.CLOSED] * script[2])
            else:
                self.scripts.append(script)


class FindingRelay(MemoryRelay):
    world: World

    @property
    def finds_holders(self) -> bool:
        return True

    @property
    def server(self) -> str:
        return ME

    def send_to_holders(self, stamp: str, messages: Sequence[ForwardedMessage]) -> asyncio.Future[Sequence[Fate]]:
        sent: asyncio.Future[Sequence[Fate]] = asyncio.get_running_loop().create_future()
        world = self.world

        def act() -> list[Fate]:
            return [Fate.TERM_OVER if stamp != world.stamp else self._send_one(message) for message in messages]

        world.scripts.append((act, sent.set_result, len(messages), True))
        return sent

    def _send_one(self, message: ForwardedMessage) -> Fate:
        device_id = str(message.address)
        holder = self.world.holders.get(device_id)
        if holder in (None, ME):
            return Fate.NO_SERVER if holder is None else Fate.HERE
        self.world.take(device_id, message.offset)
        return Fate.ACCEPTED

    def send(self, server: str, message: RelayMessage) -> asyncio.Future[Fate]:
        sent: asyncio.Future[Fate] = asyncio.get_running_loop().create_future()
        assert isinstance(message, Forward)

        def act() -> list[Fate]:
            for one in message.messages:
                if self.world.holders.get(str(one.address)) == server:
                    self.world.take(str(one.address), one.offset)
            return [Fate.ACCEPTED]

        self.world.scripts.append((act, lambda fates: sent.set_result(fates[0]), 1, False))
        return sent


class LatePresence(LocalPresence):
    world: World

    def until_lease(self) -> None:
        return None

    @property
    def stamp(self) -> str:
        return self.world.stamp

    def holders(self, device_ids: Sequence[str]) -> asyncio.Future[Mapping[str, Sequence[Holder]]]:
        future: asyncio.Future[Mapping[str, Sequence[Holder]]] = asyncio.get_running_loop().create_future()

        def answer() -> None:
            held = {name: self.world.holders[name] for name in device_ids if name in self.world.holders}
            future.set_result({name: [Holder(server, Generation(0, 1))] for name, server in held.items()})

        self.world.look_ups.append(answer)
        return future


STEPS = st.lists(
    st.one_of(
        st.lists(st.sampled_from([STAYS, LOCAL, MOVES, Group("red")]), min_size=1, max_size=3),
        st.sampled_from(["done", "done", "lost", "unsent", "answer", "answer", "term", "b", "c", ME, "away"]),
    ),
    max_size=25,
)


@examples(300)
@given(STEPS)
def test_no_message_is_overtaken_and_none_is_lost_for_a_device_that_stays(steps: list[list[str | Group] | str]) -> None:
    asyncio.run(_play(steps))


async def _play(steps: list[list[str | Group] | str]) -> None:
    world, hub, relay = World(), Hub(), FindingRelay()
    presence = LatePresence(SlotLimits, relay, lambda: 0.0)
    presence.world = relay.world = world
    router = Router(hub, Counters(), lambda: 0.0, presence, relay, has_neighbors=True)
    clients: list[FakeClient] = []

    def join(device_id: str) -> None:
        client = connect(hub, device_id, lease=presence.lease)
        client.send = lambda frame, timestamp_ms, terms=None: world.take(device_id, timestamp_ms - 1)  # type: ignore[method-assign]
        clients.append(client)
        world.holders[device_id] = ME

    join(LOCAL)
    done: list[int] = []
    read: list[list[int]] = []
    sent: dict[str, list[int]] = {}
    offset = 0
    for step in steps:
        if isinstance(step, list):
            records = [Record(address, b"{}", at + 1) for at, address in enumerate(step, offset)]
            for at, address in enumerate(step, offset):
                if isinstance(address, str):
                    sent.setdefault(address, []).append(at)
            read.append([*range(offset, offset + len(step))])
            offset += len(step)
            router(Batch(records, lambda: done.append(1), read[-1], [("results/0", len(step))]))
        elif step == "answer":
            if world.look_ups:
                world.look_ups.popleft()()
        elif step == "term":
            world.stamp = f"{int(world.stamp.partition(':')[0]) + 1}:run"
        elif step in ("b", "c", ME, "away"):
            for client in hub.clients_of(MOVES):
                hub.unregister(client)
            world.holders.pop(MOVES, None)
            if step == ME:
                join(MOVES)
            elif step != "away":
                world.holders[MOVES] = step
        else:
            world.execute(step)
        await _settle()
    while world.scripts or world.look_ups:
        world.execute("done")
        if world.look_ups:
            world.look_ups.popleft()()
        await _settle()
    assert world.overtaken == []
    assert [world.got.get(name, []) for name in (STAYS, LOCAL)] == [sent.get(name, []) for name in (STAYS, LOCAL)]
    assert len(done) == len(read)


async def _settle() -> None:
    for _ in range(6):  # a future's callback, and what it begins
        await asyncio.sleep(0)


@pytest.mark.parametrize("fate", [Fate.NO_SERVER, Fate.HERE, Fate.OVERFLOW])
def test_what_has_no_holder_elsewhere_is_not_connected_and_what_has_no_room_is_dropped(fate: Fate) -> None:
    async def play() -> tuple[int, dict[str, int]]:
        counters, relay = Counters(), FindingRelay()
        presence = LatePresence(SlotLimits, relay, lambda: 0.0)
        presence.world = relay.world = World()
        router = Router(Hub(), counters, lambda: 0.0, presence, relay, has_neighbors=True)
        done: list[int] = []
        router(Batch([Record("doll", b"{}", 1)], lambda: done.append(1), [0], [("results/0", 1)]))
        relay.world.scripts.popleft()[1]([fate])
        await _settle()
        assert done == [1]
        return counters.unknown_device, counters.dropped

    expected = (0, {"overflow": 1}) if fate is Fate.OVERFLOW else (1, {})
    assert asyncio.run(play()) == expected


class Play:
    """A router whose relay finds holders, and which device is connected here."""

    def __init__(self, per_device: int = 1, delivery: ConnectionDelivery = "all") -> None:
        self.relay, self.counters, self.hub = FindingRelay(), Counters(), Hub(delivery)
        presence = LatePresence(lambda: SlotLimits(per_device=per_device), self.relay, lambda: 0.0)
        self.world = presence.world = self.relay.world = World()
        self.router = Router(self.hub, self.counters, lambda: 0.0, presence, self.relay, has_neighbors=True)
        self.lease = presence.lease
        self.done: list[int] = []
        self._offset = 0

    def connect(self, device_id: str) -> list[int]:
        """Returns where the offsets appear that this connection gets."""
        client, got = connect(self.hub, device_id, lease=self.lease), list[int]()
        client.send = lambda frame, timestamp_ms, terms=None: got.append(timestamp_ms - 1)  # type: ignore[method-assign]
        return got

    def read(self, *addresses: str | Group) -> None:
        offsets = [*range(self._offset, self._offset + len(addresses))]
        self._offset += len(addresses)
        records = [Record(address, b"{}", offset + 1) for address, offset in zip(addresses, offsets, strict=True)]
        self.router(Batch(records, lambda: self.done.append(1), offsets, [("results/0", len(records))]))

    async def execute(self, outcome: str = "done") -> None:
        self.world.execute(outcome)
        await _settle()


@pytest.mark.parametrize("outcome", ["done", "lost", "unsent"])
def test_a_device_that_is_here_gets_its_messages_at_other_servers_too_if_it_may_be_there(outcome: str) -> None:
    async def play() -> None:
        run = Play(per_device=2)
        run.world.holders["both"] = "b"
        here, only = run.connect("both"), run.connect("only")
        run.read("both", STAYS, "only")
        run.read("both")
        await run.execute(outcome)
        while run.world.scripts or run.world.look_ups:
            if run.world.look_ups:
                run.world.look_ups.popleft()()
            await run.execute()
        assert (here, only, run.world.got, run.done) == ([0, 3], [2], {"both": [0, 3], STAYS: [1]}, [1, 1])
        assert (run.counters.unknown_device, run.world.overtaken) == (0, [])

    asyncio.run(play())


def test_a_message_that_another_server_got_is_not_missed_by_a_connection_that_has_ended_here() -> None:
    async def play() -> None:
        run = Play(per_device=2)
        run.world.holders["both"] = "b"
        run.connect("both")
        run.read("both")
        run.hub.unregister(run.hub.clients_of("both")[0])
        await run.execute()
        assert (run.world.got, run.counters.unknown_device, run.done) == ({"both": [0]}, 0, [1])

    asyncio.run(play())


@pytest.mark.parametrize(("per_device", "delivery"), [(1, "all"), (2, "one")])
def test_nobody_is_asked_about_devices_that_are_here_unless_all_of_several_connections_get_messages(
    per_device: int, delivery: ConnectionDelivery
) -> None:
    async def play() -> None:
        run = Play(per_device, delivery)
        here = run.connect("here")
        run.read("here")
        assert (here, run.done, len(run.world.scripts), len(run.world.look_ups)) == ([0], [1], 0, 0)

    asyncio.run(play())


def test_a_batch_for_devices_that_are_here_does_not_make_later_ones_wait_for_a_lookup() -> None:
    async def play() -> None:
        run = Play()
        here = run.connect("here")
        for device_id in (STAYS, "here", STAYS):
            run.read(device_id)
        assert (len(run.world.scripts), len(run.world.look_ups)) == (2, 0)
        await run.execute()
        await run.execute()
        assert (run.world.got, here, run.done) == ({STAYS: [0, 2]}, [1], [1, 1, 1])

    asyncio.run(play())


def test_batches_behind_one_for_a_group_are_sent_to_holders_as_soon_as_that_one_is_routed() -> None:
    async def play() -> None:
        run = Play()
        for address in (STAYS, Group("red"), STAYS, STAYS):
            run.read(address)
        assert (len(run.world.scripts), len(run.world.look_ups)) == (1, 0)
        await run.execute()
        assert (len(run.world.scripts), len(run.world.look_ups)) == (2, 0)
        run.read(STAYS)
        assert len(run.world.scripts) == 3
        while run.world.scripts:
            await run.execute()
        assert (run.world.got, len(run.done), len(run.world.look_ups)) == ({STAYS: [0, 2, 3, 4]}, 5, 0)

    asyncio.run(play())


@pytest.mark.logs("cocoa.router", "routing failed")
def test_a_fault_before_a_batch_is_sent_holds_up_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> list[int]:
        playing = Play()
        with monkeypatch.context() as patch:
            patch.setattr(playing.router._local, "drop_expired", Mock(side_effect=RuntimeError("a fault")))
            playing.read("gone")
        playing.world.look_ups.popleft()()  # as for a batch that the relay cannot take
        await _settle()
        playing.read("gone")
        await playing.execute()
        return playing.done

    assert asyncio.run(play()) == [1, 1]
