"""Two workers that hand records over, without Kafka and Redis (handover.handover, link, sockets)."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.counters import Counters
from cocoa_tornado.handover.handover import HandOver
from cocoa_tornado.handover.sockets import Meeting, Sockets
from cocoa_tornado.handover.wire import Hello, encode
from cocoa_tornado.hub import Hub
from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.local import LocalPresence, LocalStore
from cocoa_tornado.relay.memory import Exchange, MemoryRelay
from cocoa_tornado.routing.address import Group
from cocoa_tornado.routing.router import Router
from cocoa_tornado.rules.identity import DeviceIdentity
from cocoa_tornado.rules.records import Record
from testing.waiting import eventually

from ..clients import FakeClient

pytestmark = pytest.mark.gen_test(timeout=60)


class Worker:
    def __init__(self, number: int, store: LocalStore, exchange: Exchange) -> None:
        self.number = number
        self.hub, self.counters = Hub(), Counters()
        self.relay = MemoryRelay(exchange)
        self.presence = LocalPresence(SlotLimits, self.relay, time.monotonic, store)
        router = Router(self.hub, self.counters, time.monotonic, self.presence, self.relay, has_neighbors=True)
        self.presence.start(self.hub)
        self.handover = HandOver(
            number,
            router,
            self.hub,
            lambda: self.presence.until_lease(),
            self.relay,
            self.counters,
            time.monotonic,
            lambda: self.is_allowed,
        )
        self.is_allowed = True
        self.done: list[int] = []
        self.offset = self.batches = 0

    async def connect(self, device_id: str) -> FakeClient:
        grant = await self.presence.claim(device_id)
        client = FakeClient(self.hub, grant, DeviceIdentity(device_id, 99, "1", ("all",), 1e12))
        self.hub.register(client)
        self.presence.register(grant)
        return client

    def leave(self, client: FakeClient) -> None:
        self.hub.unregister(client)
        self.presence.release(client.grant)

    def read(self, *records: Record, assignment: int = 0) -> None:
        offsets = list(range(self.offset, self.offset + len(records)))
        self.offset += len(records)
        self.batches += 1
        source = [(f"results/{self.number}", len(records))]
        self.handover(Batch(list(records), lambda: self.done.append(1), offsets, source, assignment))


class Two:
    def __init__(self) -> None:
        self.store, self.exchange = LocalStore(term=1), Exchange()
        self.a, self.b = (Worker(number, self.store, self.exchange) for number in (1, 2))

    async def link(self) -> None:
        loop = asyncio.get_running_loop()
        for worker, sock in zip((self.a, self.b), socket.socketpair(), strict=True):
            sock.setblocking(False)
            await loop.connect_accepted_socket(worker.handover.link, sock)
        await eventually(lambda: self.a.handover.siblings == self.b.handover.siblings == 1)

    async def knows(self, device_id: str) -> None:
        """A hands this device's records over to B."""

        def has_handed_over() -> bool:
            before = self.a.counters.handed_over
            self.a.read(text(0, device_id))
            return self.a.counters.handed_over > before

        await eventually(has_handed_over)
        await eventually(self.is_done)

    async def close(self) -> None:
        self.a.handover.close()
        self.b.handover.close()
        await eventually(lambda: self.a.handover.siblings == self.b.handover.siblings == 0)
        await asyncio.sleep(0)  # until asyncio has closed the sockets

    def is_done(self) -> bool:
        return len(self.a.done) == self.a.batches


@pytest.fixture
def two(io_loop: IOLoop) -> Iterator[Two]:
    stand = io_loop.run_sync(linked)
    yield stand
    io_loop.run_sync(stand.close)


async def linked() -> Two:
    stand = Two()
    await stand.link()
    return stand


def text(number: int, address: object = "doll") -> Record:
    return Record(address, b"{%d,}" % number, 7)  # type: ignore[arg-type]  # any address


def texts(client: FakeClient) -> list[str]:
    return [frame.partition(b"{")[2].partition(b",")[0].decode() for frame in client.sent]


async def test_records_of_a_sibling_s_device_go_there_in_order_and_past_the_relay(two: Two) -> None:
    doll, here = await two.b.connect("doll"), await two.a.connect("here")
    await two.knows("doll")
    first = len(doll.sent)
    relayed = dict(two.a.relay.counters.accepted)
    for number in range(1, 200):
        two.a.read(text(number), text(number, "here"))
    await eventually(lambda: len(doll.sent) == first + 199)
    assert texts(doll)[first:] == texts(here) == [str(number) for number in range(1, 200)]
    assert two.a.relay.counters.accepted == relayed
    assert two.b.counters.taken_over == two.a.counters.handed_over
    assert two.a.counters.handed_back == 0


async def test_a_device_that_moves_here_gets_everything_in_order(two: Two) -> None:
    doll = await two.b.connect("doll")
    await two.knows("doll")
    two.a.read(text(1))
    two.b.leave(doll)
    again = await two.a.connect("doll")
    two.a.read(text(2))
    two.a.read(text(3))
    await eventually(lambda: texts(again)[-2:] == ["2", "3"])
    assert (texts(doll) + texts(again)).count("1") == 1
    await eventually(two.is_done)


async def test_what_a_sibling_did_not_acknowledge_before_its_end_is_routed_here(two: Two) -> None:
    doll = await two.b.connect("doll")
    await two.knows("doll")
    two.b.handover.received = lambda link, message: None  # type: ignore[method-assign]  # it hangs
    for number in (1, 2):
        two.a.read(text(number))
    await eventually(lambda: two.a.counters.handed_over >= 3)
    two.b.leave(doll)
    again = await two.a.connect("doll")
    assert texts(again) == []
    two.b.handover.close()
    await eventually(lambda: texts(again) == ["1", "2"])
    await eventually(two.is_done)
    assert two.a.handover.siblings == 0


async def test_records_for_a_group_keep_their_place_among_those_of_its_devices(two: Two) -> None:
    doll = await two.b.connect("doll")
    await two.knows("doll")
    first = len(doll.sent)
    for number, address in enumerate(["doll", "doll", Group("all"), "doll", Group("all"), "doll"], 1):
        two.a.read(text(number, address))
    await eventually(lambda: len(doll.sent) == first + 6)
    assert texts(doll)[first:] == ["1", "2", "3", "4", "5", "6"]
    await eventually(two.is_done)


async def test_after_an_assignment_of_partitions_nothing_is_handed_over_at_first(two: Two) -> None:
    """Records of their earlier owner may still be in a sibling's inbox of the relay."""
    doll = await two.b.connect("doll")
    await two.knows("doll")
    before = two.a.counters.handed_over
    for number, assignment in ((1, 0), (2, 1), (3, 1)):
        two.a.read(text(number), assignment=assignment)
    await eventually(lambda: texts(doll)[-3:] == ["1", "2", "3"])
    assert two.a.counters.handed_over == before + 1
    await eventually(two.is_done)


@pytest.mark.logs("cocoa.handover", "routing failed")
async def test_a_fault_of_the_router_holds_up_no_device_that_joins_a_sibling(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patches:
        patches.setattr(Router, "_route", lambda *_: 1 / 0)
        two.a.read(text(0, "other"))
    doll = await two.b.connect("doll")
    before = two.a.counters.handed_over
    await eventually(lambda: two.a.handover._rules._holders == {"doll": 2})
    two.a.read(text(1))
    await eventually(lambda: texts(doll) == ["1"])
    assert two.a.counters.handed_over == before + 1
    await eventually(lambda: two.a.done == [1])


async def test_a_sibling_that_reads_slowly_gets_one_portion_after_another(two: Two) -> None:
    doll = await two.b.connect("doll")
    await two.knows("doll")
    first, link = len(doll.sent), two.b.handover._links[1]
    assert link._transport is not None
    link._transport.pause_reading()
    two.a.read(*[Record("doll", b"{%d,%s}" % (number, b"x" * 1000), 7) for number in range(5000)])
    await eventually(lambda: not two.a.handover._links[2].is_writable)
    assert two.a.handover._rules.gathered(2) >= 2000
    link._transport.resume_reading()
    await eventually(lambda: len(doll.sent) == first + 5000)
    assert texts(doll)[first:] == [str(number) for number in range(5000)]
    await eventually(two.is_done)


@pytest.mark.logs("cocoa.presence", "lease lost")
async def test_a_sibling_without_a_valid_lease_returns_what_is_for_its_devices(two: Two) -> None:
    old = await two.b.connect("doll")
    await two.knows("doll")
    first = len(old.sent)
    cut_off = two.store.fence_unnoticed(two.b.presence.lease.server)
    new = await Worker(3, two.store, two.exchange).connect("doll")  # of another machine
    for number in (1, 2, 3):
        two.a.read(text(number))
    await eventually(two.is_done)
    await eventually(lambda: texts(new) == ["1", "2", "3"])
    assert cut_off is not None
    cut_off.lose_lease()
    two.a.read(text(4))
    await eventually(lambda: texts(new) == ["1", "2", "3", "4"])
    assert texts(old)[first:] == []
    await eventually(two.is_done)


async def test_a_sibling_takes_records_again_once_its_lease_is_valid(two: Two) -> None:
    doll, lease = await two.b.connect("doll"), two.b.presence.lease
    await two.knows("doll")
    first = len(doll.sent)
    until, lease.until = lease.until, 0.0
    two.a.read(text(1))
    await eventually(lambda: two.a.counters.handed_back == 1)
    two.a.read(text(2))
    lease.until = until
    two.b.presence._note_lease()
    await two.knows("doll")
    await eventually(lambda: len(doll.sent) >= first + 3)
    assert texts(doll)[first : first + 2] == ["1", "2"]


@pytest.mark.logs("cocoa.handover", "sibling not understood")
async def test_a_sibling_of_another_version_gets_nothing() -> None:
    stand = Two()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(stand.a.handover.link, ours)
    theirs.send(encode(Hello(2**20, 2)))
    loop = asyncio.get_running_loop()
    while await loop.sock_recv(theirs, 1000):
        pass
    theirs.close()
    assert stand.a.handover.siblings == 0


async def test_workers_find_each_other_in_a_folder_and_again_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocoa_tornado.handover.sockets.AGAIN_S", 0.01)
    stand = Two()

    def sockets(worker: Worker) -> Sockets:
        return Sockets(Meeting(tmp_path, worker.number, 2), worker.handover.link)

    one, other = sockets(stand.a), sockets(stand.b)
    await other.open()  # no worker listens yet
    await one.open()
    both: Callable[[], bool] = lambda: stand.a.handover.siblings == stand.b.handover.siblings == 1  # noqa: E731
    await eventually(both)

    await one.close()
    stand.a.handover.close()
    await eventually(lambda: stand.b.handover.siblings == 0)
    successor = Two().a
    again = sockets(successor)
    (tmp_path / "1.sock").touch()  # as if it had been killed
    await again.open()
    await eventually(lambda: successor.handover.siblings == stand.b.handover.siblings == 1)
    await again.close()
    await other.close()
    assert [*tmp_path.iterdir()] == []
    successor.handover.close()
    stand.b.handover.close()
    await eventually(lambda: successor.handover.siblings == stand.b.handover.siblings == 0)
    await asyncio.sleep(0)
