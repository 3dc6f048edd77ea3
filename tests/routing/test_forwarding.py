"""Messages for devices that another server holds: two gateways' routers over one table and one exchange."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.counters import Counters
from cocoa_tornado.hub import Hub
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Doorbell, Entry, FanOut, Mailbox
from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.local import LocalPresence, LocalStore
from cocoa_tornado.presence.port import Holder
from cocoa_tornado.relay.memory import Exchange, MemoryRelay
from cocoa_tornado.relay.messages import UNKNOWN_PLACE, RelayMessage
from cocoa_tornado.relay.port import Fate, RelayLimits
from cocoa_tornado.routing import forwards, looking
from cocoa_tornado.routing.address import Devices, Everyone, Group, User
from cocoa_tornado.routing.router import Router
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.audiences import audiences_of, of_group
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.identity import DeviceIdentity
from cocoa_tornado.rules.records import Record
from cocoa_tornado.rules.terms import Terms
from testing.waiting import eventually

from ..clients import FakeClient

pytestmark = pytest.mark.gen_test(timeout=60)


@dataclass(eq=False)
class Connection(FakeClient):
    """A device that counts how often it is made to look into its box."""

    looks: int = 0

    def look_again(self) -> None:
        self.looks += 1

    @property
    def texts(self) -> list[str]:
        return [frame.partition(b"{")[2].partition(b",")[0].decode() for frame in self.sent]


@dataclass
class Server:
    store: LocalStore
    exchange: Exchange
    mailbox: Mailbox | None = None
    hub: Hub = field(default_factory=Hub)
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self.relay = MemoryRelay(self.exchange)
        self.presence = LocalPresence(SlotLimits, self.relay, lambda: 0.0, self.store)
        self.router = Router(
            self.hub,
            self.counters,
            lambda: 0.0,
            self.presence,
            self.relay,
            mailbox=self.mailbox,
            has_neighbors=True,
        )
        self.presence.start(self.hub)

    async def connect(self, device_id: str, *groups: str) -> Connection:
        grant = await self.presence.claim(device_id)
        client = Connection(self.hub, grant, DeviceIdentity(device_id, 99, "1", groups, 1e12))
        self.hub.register(client)
        self.presence.register(grant)
        return client


class Stand:
    """Servers A and B."""

    def __init__(self, mailbox: Mailbox | None = None, limits: RelayLimits | None = None) -> None:
        self.store, self.exchange = LocalStore(term=1), Exchange(limits)
        self.a, self.b = (Server(self.store, self.exchange, mailbox) for _ in range(2))
        self.done: list[int] = []
        self.next_offset = 0

    def read_at_a(self, *records: Record, first: int | None = None) -> None:
        """:param first: the offset of the first one; None: they come after all that were read"""
        self.read_at(self.a, *records, first=self.next_offset if first is None else first)

    def read_at(self, server: Server, *records: Record, first: int) -> None:
        self.next_offset = first + len(records)
        offsets = list(range(first, self.next_offset))
        server.router(Batch(list(records), lambda: self.done.append(1), offsets, [("results/0", len(records))]))


async def with_mailbox(limits: RelayLimits | None = None) -> Stand:
    mailbox = MemoryMailbox(BoxLimits())
    await mailbox.start()
    stand = Stand(mailbox, limits)
    mailbox.watch_fan_outs(stand.a.router.on_step)  # those of what A reads
    return stand


def text(number: int, address: object = "doll", interim_of: str = "") -> Record:
    return Record(address, b"{%d,}" % number, 7, interim_of=interim_of)  # type: ignore[arg-type]  # any address


async def test_a_message_reaches_its_device_at_whichever_server_it_is() -> None:
    stand = Stand()
    here, there = await stand.a.connect("here"), await stand.b.connect("there")
    stand.read_at_a(text(0, "there"), text(1, "here"), text(2, "there"), text(3, "nowhere"))
    assert stand.done == [1]
    await eventually(lambda: len(there.sent) == 2)
    assert (here.texts, there.texts) == (["1"], ["0", "2"])
    assert (stand.a.counters.routed, stand.b.counters.routed) == (1, 2)
    assert (stand.a.counters.unknown_device, stand.b.counters.unknown_device) == (1, 0)


async def test_one_record_reaches_devices_at_two_servers_and_each_once() -> None:
    stand = Stand()
    clients = [await stand.a.connect("one"), await stand.b.connect("two"), await stand.b.connect("three")]
    stand.read_at_a(text(0, Devices(("two", "one", "three", "two"))))
    await eventually(lambda: all(client.sent for client in clients))
    assert [client.texts for client in clients] == [["0"]] * 3


async def test_a_group_a_user_and_everyone_are_found_at_all_servers() -> None:
    stand = Stand()
    one, two, other = await stand.a.connect("one", "red"), await stand.a.connect("two"), await stand.b.connect("other")
    red = await stand.b.connect("red", "red")
    no_red = Everyone(frozenset({"red"}))
    stand.read_at_a(text(0, Group("red")), text(1, no_red), text(2, "other"), text(3, User(99)), text(4, "two"))
    await eventually(lambda: len(other.sent) == 3)
    assert (one.texts, two.texts) == (["0", "1", "3"], ["1", "3", "4"])
    assert (other.texts, red.texts, stand.done) == (["1", "2", "3"], ["0", "3"], [1])
    assert (stand.a.counters.routed, stand.b.counters.routed) == (6, 5)
    stand.read_at_a(text(5, Group("blue")))  # whether it has recipients is not known to this server
    await asyncio.sleep(0)
    assert (stand.a.counters.unknown_device, stand.b.counters.unknown_device) == (0, 0)


async def test_without_a_mailbox_a_partition_that_another_server_reads_again_reaches_each_device_once() -> None:
    stand = Stand()
    here, there = await stand.a.connect("here", "red"), await stand.b.connect("there", "red")
    addresses = ["there", "here", Group("red"), Devices(("here", "there")), "there", "here", Everyone()]
    stand.read_at_a(*(text(at, address) for at, address in enumerate(addresses[:5])))
    await eventually(lambda: len(there.sent) == 4)
    stand.read_at(stand.b, *(text(at, address) for at, address in enumerate(addresses) if at >= 2), first=2)
    await eventually(lambda: len(here.sent) == 5)
    assert (here.texts, there.texts) == (["1", "2", "3", "5", "6"], ["0", "2", "3", "4", "6"])
    assert (stand.a.counters.dropped, stand.b.counters.dropped) == ({"repeated": 2}, {"repeated": 3})


async def test_of_connections_at_several_servers_one_gets_each_message_where_one_is_to() -> None:
    store, exchange, done = LocalStore(term=1), Exchange(), list[int]()
    several = [Server(store, exchange, hub=Hub("one")) for _ in range(3)]
    for server in several:
        server.presence.limits = lambda: SlotLimits(per_device=2)
    a, b, c = several
    clients = [await b.connect("doll"), await c.connect("doll")]
    for number, server in enumerate((a, b, c)):
        server.router(Batch([text(number)], lambda: done.append(1), [number], [("results/0", 1)]))
        await eventually(lambda number=number: len(clients[0].sent) + len(clients[1].sent) == number + 1)  # type: ignore[misc]
    assert [client.texts for client in clients] == [["0", "1"], ["2"]]
    assert done == [1, 1, 1]


class Overview:
    """Whether a server's presence knows all servers, as a test says."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self._presence, self._monkeypatch = server.presence, monkeypatch
        self._waited: list[asyncio.Future[None]] = []

    def lose(self) -> None:
        """It has joined anew, for example: it has not heard of any other server or holder."""
        patches = {"until_overview": self._wait, "others": list, "holders": self._nobody}
        for name, patch in patches.items():
            self._monkeypatch.setattr(self._presence, name, patch)

    def regain(self) -> None:
        self._monkeypatch.undo()
        for future in self._waited:
            future.set_result(None)
        self._waited.clear()

    def _wait(self) -> asyncio.Future[None]:
        self._waited.append(asyncio.get_running_loop().create_future())
        return self._waited[-1]

    def _nobody(self, device_ids: Sequence[str]) -> asyncio.Future[Mapping[str, Sequence[Holder]]]:
        found: asyncio.Future[Mapping[str, Sequence[Holder]]] = asyncio.get_running_loop().create_future()
        found.set_result({})
        return found


@pytest.mark.parametrize(
    "address",
    ["there", Devices(("here", "there")), Group("red"), User(99), Everyone()],
    ids=lambda address: str(address),
)
async def test_without_a_mailbox_what_may_be_for_other_servers_waits_until_presence_knows_them_all(
    address: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand()
    here, there = await stand.a.connect("here"), await stand.b.connect("there", "red")
    overview = Overview(stand.a, monkeypatch)
    overview.lose()
    stand.read_at_a(text(0, address))
    stand.read_at_a(text(1, "here"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert (stand.done, stand.a.counters.unknown_device, here.texts) == ([], 0, [])
    overview.regain()
    await eventually(lambda: stand.done == [1, 1] and there.texts == ["0"])
    assert (stand.a.counters.unknown_device, here.texts[-1]) == (0, "1")


@pytest.mark.parametrize("address", ["there", Group("red")])
async def test_without_a_mailbox_nothing_is_lost_when_a_term_ends_during_a_look_up(
    address: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand()
    there = await stand.b.connect("there", "red")
    overview = Overview(stand.a, monkeypatch)
    holders_of, answer = stand.a.presence.holders, asyncio.get_running_loop().create_future()
    monkeypatch.setattr(stand.a.presence, "holders", lambda _: answer)
    stand.read_at_a(text(0, "other"), text(1, address))
    monkeypatch.setattr(stand.a.presence, "holders", holders_of)
    overview.lose()
    answer.set_result({})
    for _ in range(5):
        await asyncio.sleep(0)
    assert (stand.done, there.texts) == ([], [])
    overview.regain()
    await eventually(lambda: stand.done == [1] and there.texts == ["1"])
    assert stand.a.counters.unknown_device == 1


async def test_what_is_for_devices_here_waits_for_no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand()
    here = await stand.a.connect("here")
    Overview(stand.a, monkeypatch).lose()
    stand.read_at_a(text(0, "here"))
    assert (stand.done, here.texts) == ([1], ["0"])


@pytest.mark.logs("cocoa.presence", "lease lost")
async def test_without_a_valid_lease_what_is_for_devices_here_waits_and_follows_them_elsewhere() -> None:
    stand = Stand()
    old, stays = await stand.a.connect("doll"), await stand.a.connect("stays")
    cut_off = stand.store.fence_unnoticed(stand.a.presence.lease.server)
    new = await stand.b.connect("doll")
    stand.read_at_a(text(0), text(1, "stays"))
    stand.read_at_a(text(2), text(3, Group("all")))
    for _ in range(5):
        await asyncio.sleep(0)
    assert (stand.done, old.texts, stays.texts, stand.a.counters.dropped) == ([], [], [], {})
    assert cut_off is not None
    cut_off.lose_lease()
    await eventually(lambda: stand.done == [1, 1] and len(new.sent) == 2)
    assert (new.texts, old.texts, stays.texts) == (["0", "2"], [], [])


async def test_without_a_valid_lease_what_is_for_devices_here_waits_until_it_is_valid_again() -> None:
    stand = Stand()
    doll, lease = await stand.a.connect("doll"), stand.a.presence.lease
    until, lease.until = lease.until, 0.0
    for number in range(3):
        stand.read_at_a(text(number))
    assert (stand.done, doll.texts) == ([], [])
    lease.until = until
    stand.read_at_a(text(3))  # behind those that wait
    assert doll.texts == []
    stand.a.presence._note_lease()
    await eventually(lambda: stand.done == [1] * 4)
    assert doll.texts == ["0", "1", "2", "3"]


@pytest.mark.logs("cocoa.presence", "lease lost")
async def test_a_batch_whose_look_up_is_answered_without_a_valid_lease_waits_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand = Stand()
    old = await stand.a.connect("doll")
    answer = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(stand.a.presence, "holders", lambda _: answer)
    stand.read_at_a(text(0), text(1, "other"))
    stand.read_at_a(text(2))
    monkeypatch.undo()
    cut_off = stand.store.fence_unnoticed(stand.a.presence.lease.server)
    new = await stand.b.connect("doll")
    answer.set_result({})
    for _ in range(5):
        await asyncio.sleep(0)
    assert (stand.done, old.texts) == ([], [])
    assert cut_off is not None
    cut_off.lose_lease()
    await eventually(lambda: stand.done == [1, 1] and len(new.sent) == 2)
    assert (new.texts, old.texts) == (["0", "2"], [])


@pytest.mark.logs("cocoa.presence", "lease lost")
async def test_a_batch_whose_look_up_is_answered_after_the_server_has_joined_anew_follows_its_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand = Stand()
    await stand.a.connect("doll")
    answer = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(stand.a.presence, "holders", lambda _: answer)
    stand.read_at_a(text(0), text(1, "other"))
    monkeypatch.undo()
    stand.store.fence(stand.a.presence.lease.server)
    new = await stand.b.connect("doll")
    answer.set_result({})
    await eventually(lambda: stand.done == [1] and new.texts == ["0"])


async def test_a_device_that_comes_after_a_record_was_read_may_get_it_when_it_is_read_again() -> None:
    stand = Stand()
    stand.read_at_a(text(0), text(1))
    client = await stand.b.connect("doll")
    stand.read_at(stand.b, text(1), text(2), first=1)
    assert client.texts == ["1", "2"]


class RingingMailbox(MemoryMailbox):
    """Wakes the holders' servers itself, as far as its test says who they are."""

    rings = True

    def __init__(self, holders: dict[str, Connection]) -> None:
        super().__init__(BoxLimits())
        self.holders = holders
        self.rung: list[frozenset[str]] = []

    def append(
        self, entries: Sequence[Entry | FanOut], doorbell: Doorbell | None = None
    ) -> asyncio.Future[list[int | None]]:
        if doorbell is not None:
            self.rung.append(doorbell.device_ids)
            doorbell.held.update(doorbell.device_ids & self.holders.keys())
            for device_id in doorbell.held:
                self.holders[device_id].look_again()
        return super().append(entries)


async def test_a_mailbox_that_rings_wakes_the_devices_of_other_servers_and_the_router_looks_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    holders: dict[str, Connection] = {}
    mailbox = RingingMailbox(holders)
    await mailbox.start()
    stand = Stand(mailbox)
    here, there = await stand.a.connect("here"), await stand.b.connect("there")
    holders["there"] = there
    asked: list[Sequence[str]] = []
    holders_of = stand.a.presence.holders

    def ask(device_ids: Sequence[str]) -> asyncio.Future[Mapping[str, Sequence[Holder]]]:
        asked.append(device_ids)
        return holders_of(device_ids)

    monkeypatch.setattr(stand.a.presence, "holders", ask)
    stand.read_at_a(text(0, "there"), text(1, "here"), text(2, "away"))
    await eventually(lambda: stand.done == [1])
    assert (mailbox.rung, asked) == ([frozenset({"there", "away"})], [])
    assert (here.texts, there.looks, stand.a.counters.kept, stand.b.relay.counters.received) == (["1"], 1, 1, {})
    stand.read_at_a(text(3, "here"), text(4, "there", "s"))
    await eventually(lambda: len(there.sent) == 1)
    assert asked == [["there"]], "what is not stored is forwarded"


async def test_a_device_that_leaves_while_its_message_is_stored_is_looked_up() -> None:
    mailbox = RingingMailbox({})
    await mailbox.start()
    stand = Stand(mailbox)
    client = await stand.a.connect("doll")
    stand.read_at_a(text(0))
    stand.a.hub.unregister(client)
    stand.a.presence.release(client.grant)
    moved = await stand.b.connect("doll")
    await eventually(lambda: moved.looks == 1)


async def test_with_a_mailbox_all_devices_look_into_their_boxes_after_a_loss_of_wake_ups() -> None:
    stand = await with_mailbox(RelayLimits(max_messages=3))
    clients = [await stand.b.connect(str(number)) for number in range(5)]
    stand.read_at_a(*(text(number, str(number)) for number in range(5)))  # more than the inbox of B may hold
    await eventually(lambda: all(client.looks for client in clients))
    assert ([client.looks for client in clients], stand.done) == ([1] * 5, [1])


async def test_devices_look_a_few_at_a_time_and_once_after_several_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "AT_ONCE", 2)
    monkeypatch.setattr(looking, "EVERY_S", 0.0)
    looked: list[str] = []
    again = looking.LookingAgain(lambda: list("abcde"), looked.append)
    again.start()
    assert looked == ["a", "b"]
    again.start()
    await eventually(lambda: len(looked) == 7)
    assert (sorted(looked), repr(again)) == (list("aabbcde"), "<LookingAgain, 0 devices wait>")
    again.start()
    again.stop()
    await asyncio.sleep(0)
    assert len(looked) == 9


async def test_options_reach_the_devices_of_other_servers() -> None:
    stand = Stand()
    client = await stand.b.connect("doll", "red")
    sent: list[object] = []
    client.send = lambda frame, timestamp_ms, terms=None: sent.append(terms)  # type: ignore[method-assign]
    options = Options("high", ttl_s=10**10, collapse_key="k", id="i")
    for address in ("doll", Group("red")):
        stand.read_at_a(text(0, address)._replace(options=options))
    await eventually(lambda: len(sent) == 2)
    assert sent == [Terms(priority="high", expires_ms=7 + 10**13, collapse_key="k", id="i")] * 2


async def test_with_a_mailbox_a_fan_out_wakes_its_devices_at_other_servers_once_a_step() -> None:
    stand = await with_mailbox()
    here, there = await stand.a.connect("here", "red"), await stand.b.connect("there", "red")
    other = await stand.b.connect("other")
    for device_id in ("here", "there", "away"):
        assert stand.a.mailbox is not None
        stand.a.mailbox.join(device_id, frozenset({of_group("red")}))
    interim, now = text(1, Group("red"), "s"), text(2, User(99))._replace(options=Options(ttl_s=0))
    batch = (text(0, Group("red")), interim, now)
    stand.read_at_a(*batch)
    await eventually(lambda: len(other.sent) == 1)
    assert (here.texts, here.numbers, there.texts, there.looks, other.looks) == (["0", "1", "2"], [1], ["1", "2"], 1, 0)
    assert (stand.a.counters.routed, stand.a.counters.kept, stand.b.counters.kept, stand.done) == (2, 1, 0, [1])
    stand.read_at_a(*batch, first=0)  # once more: stored before, so it may not have been notified
    await eventually(lambda: there.looks == 2)
    assert (here.looks, other.looks) == (1, 0)


def allow_several(*servers: Server) -> None:
    for server in servers:
        server.presence.limits = lambda: SlotLimits(per_device=2)


async def test_a_message_reaches_all_connections_of_a_device_at_whichever_servers_they_are() -> None:
    stand = Stand()
    allow_several(stand.a, stand.b)
    clients = [await stand.a.connect("doll", "red"), await stand.b.connect("doll", "red")]
    here, there = await stand.a.connect("here"), await stand.b.connect("there")
    addresses = ["doll", Devices(("doll", "there")), Group("red"), "here", "there", "doll"]
    stand.read_at_a(*(text(at, address) for at, address in enumerate(addresses)))
    await eventually(lambda: len(clients[1].sent) == 4)
    assert [client.texts for client in clients] == [["0", "1", "2", "5"]] * 2
    assert (here.texts, there.texts, stand.done) == (["3"], ["1", "4"], [1])
    stand.read_at(stand.b, *(text(at, address) for at, address in enumerate([*addresses, "doll"]) if at > 3), first=4)
    await eventually(lambda: len(clients[0].sent) == 5)
    assert [client.texts for client in clients] == [["0", "1", "2", "5", "6"]] * 2
    assert stand.a.counters.unknown_device == stand.b.counters.unknown_device == 0


async def test_with_a_mailbox_all_connections_of_a_device_are_notified_at_other_servers_too() -> None:
    stand = await with_mailbox()
    allow_several(stand.a, stand.b)
    here, there = await stand.a.connect("doll", "red"), await stand.b.connect("doll", "red")
    for device_id in ("doll", "away"):
        assert stand.a.mailbox is not None
        stand.a.mailbox.join(device_id, frozenset({of_group("red")}))
    now = Options(ttl_s=0)
    stand.read_at_a(text(0), text(1, interim_of="s"), text(2)._replace(options=now))
    await eventually(lambda: len(there.sent) == 2)
    assert (here.texts, there.texts, there.looks, here.looks) == (["0", "1", "2"], ["1", "2"], 1, 0)
    stand.read_at_a(text(3, Group("red")), text(4, Group("red"))._replace(options=now))
    await eventually(lambda: there.looks == 2 and len(there.sent) == 3)
    assert (here.texts[3:], there.texts[2:], here.looks, stand.done) == (["3", "4"], ["4"], 0, [1, 1])
    assert (stand.a.counters.kept, stand.a.counters.unknown_device) == (1, 0)  # "away"


@pytest.mark.parametrize("per_device", [1, 2])
async def test_a_mailbox_that_wakes_servers_gets_the_devices_that_are_here_only_if_they_may_be_elsewhere_too(
    per_device: int,
) -> None:
    mailbox = RingingMailbox({})
    await mailbox.start()
    stand = Stand(mailbox)
    stand.a.presence.limits = lambda: SlotLimits(per_device=per_device)
    await stand.a.connect("here")
    stand.read_at_a(text(0, "here"), text(1, "away"), text(2, "here", interim_of="s"))
    assert mailbox.rung == [frozenset({"away"} if per_device == 1 else {"away", "here"})]


async def test_a_device_that_moves_is_sent_what_is_read_from_then_on() -> None:
    stand = Stand()
    first = await stand.b.connect("doll")
    stand.read_at_a(text(0))
    await eventually(lambda: len(first.sent) == 1)
    stand.b.hub.unregister(first)
    stand.b.presence.release(first.grant)
    second = await stand.a.connect("doll")
    stand.read_at_a(text(1))
    assert (first.texts, second.texts) == (["0"], ["1"])


async def test_a_device_that_left_while_its_message_was_under_way_is_not_connected(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stand = Stand()
    client = await stand.b.connect("doll")
    with caplog.at_level(logging.INFO, "cocoa.router"):
        stand.read_at_a(text(0))
        stand.b.hub.unregister(client)
        await eventually(lambda: stand.b.counters.unknown_device == 1)
    assert [record.getMessage() for record in caplog.records] == ["message dropped"]
    assert (stand.done, stand.a.counters.unknown_device, client.sent) == ([1], 0, [])


async def test_messages_for_a_server_that_has_ended_are_dropped_and_the_batch_is_done() -> None:
    stand = Stand()
    await stand.b.connect("doll")
    await stand.b.relay.close(1.0)
    stand.read_at_a(text(0))
    assert (stand.done, stand.a.counters.unknown_device, stand.a.counters.dropped) == ([1], 1, {})


@pytest.mark.parametrize("fate", [Fate.LOST, Fate.NO_SERVER, Fate.CLOSED])
async def test_without_a_mailbox_a_message_that_may_not_have_been_sent_is_sent_to_the_holder_once_more(
    fate: Fate, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand()
    client = await stand.b.connect("doll")
    send = stand.a.relay.send
    fates = [fate]

    def send_and_forget(server: str, message: RelayMessage) -> asyncio.Future[Fate]:
        """The first one arrives only if it is lost: then nobody knows."""
        if not fates:
            return send(server, message)
        sent: asyncio.Future[Fate] = asyncio.get_running_loop().create_future()
        sent.set_result(fates.pop())
        if sent.result() is Fate.LOST:
            send(server, message)
        return sent

    monkeypatch.setattr(stand.a.relay, "send", send_and_forget)
    stand.read_at_a(text(0), text(1))
    await eventually(lambda: len(client.sent) == 2 and stand.b.relay.counters.received["forward"] >= 2)
    await asyncio.sleep(0)
    assert (client.texts, stand.done, stand.a.counters.unknown_device) == (["0", "1"], [1], 0)


async def test_a_message_is_forwarded_with_its_options_and_the_deadline_that_its_reader_has_computed() -> None:
    stand = Stand()
    client = await stand.b.connect("doll")
    options = Options("low", 60, "key", "id")
    far_ms = 10**14  # in the future: the ttl counts from reading
    before_ms = time.time() * 1000
    stand.read_at_a(text(0), text(1, interim_of="s"), text(2)._replace(options=options, timestamp_ms=far_ms))
    await eventually(lambda: len(client.sent) == 3)
    plain, interim, low = client.terms
    assert (plain, interim) == (None, Terms("s"))
    assert low is not None
    assert low == Terms("", "low", low.expires_ms, "key", "id")
    assert before_ms + 59_999 <= low.expires_ms <= time.time() * 1000 + 60_000


async def test_messages_for_which_an_inbox_has_no_room_are_dropped_counted_and_done() -> None:
    stand = Stand(limits=RelayLimits(max_messages=2))
    client = await stand.b.connect("doll")
    stand.read_at_a(text(0), text(1))
    stand.read_at_a(text(2))
    await eventually(lambda: len(client.sent) == 2)
    assert (stand.done, stand.a.counters.dropped) == ([1, 1], {"overflow": 1})
    stand.read_at_a(text(3))
    await eventually(lambda: client.texts == ["0", "1", "3"])


async def test_of_a_batch_that_is_larger_than_an_inbox_only_what_does_not_fit_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forwards, "MOST", 2)
    stand = Stand(limits=RelayLimits(max_messages=5))
    client = await stand.b.connect("doll")
    stand.read_at_a(*(text(number) for number in range(7)))
    await eventually(lambda: len(client.sent) == 5)
    assert (client.texts, stand.done) == (["0", "1", "2", "3", "6"], [1])
    assert stand.a.counters.dropped == {"overflow": 2}


async def test_with_a_mailbox_the_holders_server_is_notified_and_sent_transient_messages_only() -> None:
    stand = await with_mailbox()
    here, there = await stand.a.connect("here"), await stand.b.connect("there")
    now = text(5, "there")._replace(options=Options(ttl_s=0))
    batch = text(0, "there"), text(1, "here"), text(2, "there"), text(3, "there", "s"), text(4, "away"), now
    stand.read_at_a(*batch)
    assert stand.done == []
    await eventually(lambda: there.looks == 1 and len(there.sent) == 2)
    assert (here.texts, there.texts, stand.done) == (["1"], ["3", "5"], [1])
    assert stand.b.relay.counters.received == {"wake_up": 1, "forward": 2}
    assert stand.a.counters.kept == 1
    stand.read_at_a(*batch[:3], first=0)  # once more: stored before, so it may not have been notified
    await eventually(lambda: there.looks == 2)
    assert here.looks == 1


async def test_with_a_mailbox_a_forwarded_message_keeps_its_place_among_the_stored_ones() -> None:
    stand = await with_mailbox()
    there, red = await stand.b.connect("there"), await stand.b.connect("red", "red")
    mailbox = stand.a.mailbox
    assert mailbox is not None
    await mailbox.join("red", frozenset({of_group("red")}))
    now, high = Options(ttl_s=0), Options("high")
    keyed, urgent = Options(ttl_s=0, id="x"), Options("high", ttl_s=0)
    stand.read_at_a(
        text(0, "there", "s"),  # comes after nothing
        text(1, "there"),  # 1
        text(2, "there", "s"),  # comes after 1, as 2 shows
        text(3, "there")._replace(options=high),  # 1 in the other lane
        text(4, "there"),  # 2
        text(5, "there")._replace(options=keyed),  # comes after 2, as the mailbox says
        text(6, "there")._replace(options=urgent),  # comes after 1, as 1 shows
        text(7, Devices(("there", "red")))._replace(options=now),  # comes after 2, and after what was stored before
        text(8, Group("red"), "s"),  # comes after nothing, as 1 shows
        text(9, "red"),  # 1
    )
    await eventually(lambda: len(there.sent) == 5 and len(red.sent) == 2)
    assert (there.texts, there.places) == (["0", "2", "5", "6", "7"], [0, 1, 2, 1, 2])
    assert (red.texts, red.places) == (["7", "8"], [0, 0])


async def test_with_a_mailbox_the_transient_message_of_a_fan_out_keeps_its_place_at_other_servers() -> None:
    stand = await with_mailbox()
    there = await stand.b.connect("there", "red")
    mailbox = stand.a.mailbox
    assert mailbox is not None
    await mailbox.join("there", frozenset({of_group("red")}))
    now = Options(ttl_s=0, collapse_key="k")
    stand.read_at_a(text(0, "there"), text(1, Group("red"))._replace(options=now), text(2, "there"))
    await eventually(lambda: len(there.sent) == 1)
    assert (there.texts, there.places) == (["1"], [1])


class SlowMailbox(MemoryMailbox):
    """Stores at once, and says so when a test lets it."""

    def __init__(self) -> None:
        super().__init__(BoxLimits())
        self.waiting: list[Callable[[], None]] = []

    def append(
        self, entries: Sequence[Entry | FanOut], doorbell: Doorbell | None = None
    ) -> asyncio.Future[list[int | None]]:
        answer: asyncio.Future[list[int | None]] = asyncio.get_running_loop().create_future()
        stored = super().append(entries, doorbell).result()
        self.waiting.append(lambda: answer.set_result(stored))
        return answer


async def test_a_forwarded_message_ahead_of_one_that_is_being_stored_has_no_known_place() -> None:
    mailbox = SlowMailbox()
    await mailbox.start()
    stand = Stand(mailbox)
    there, other = await stand.b.connect("there"), await stand.b.connect("other", "red")
    now = text(0, "there", "s"), text(1, "other", "s"), text(2, Group("red"), "s")
    stand.read_at_a(*now)
    stand.read_at_a(text(3, "there"), text(4, "other"))
    mailbox.waiting.pop(0)()
    await eventually(lambda: len(there.sent) == 1 and len(other.sent) == 2)
    assert (there.places, other.places) == ([UNKNOWN_PLACE], [UNKNOWN_PLACE] * 2)
    stand.read_at_a(*now)
    for answer in mailbox.waiting:
        answer()
    await eventually(lambda: len(there.sent) == 2)
    assert there.places[1:] == [None]


async def test_with_a_mailbox_a_transient_record_with_a_key_is_sent_to_the_devices_of_other_servers_once() -> None:
    stand = await with_mailbox()
    here, there = await stand.a.connect("here", "red"), await stand.b.connect("there", "red")
    mailbox = stand.a.mailbox
    assert mailbox is not None
    for client in (here, there):
        await mailbox.join(client.identity.device_id, audiences_of(client.identity))
    now = Options(ttl_s=0, collapse_key="k", id="x")
    batch = text(0, Group("red"))._replace(options=now), text(1, "there")._replace(options=Options(ttl_s=0, id="y"))
    for _ in range(2):
        stand.read_at_a(*batch)
        await eventually(lambda: len(there.sent) == 2)
    await asyncio.sleep(0)
    assert (here.texts, there.texts, there.looks) == (["0"], ["0", "1"], 0)
    assert there.terms == [Terms(collapse_key="k", id="x"), Terms(id="y")]


@pytest.mark.logs("cocoa.router", "routing failed")
async def test_an_error_in_waking_a_device_does_not_affect_the_others() -> None:
    stand = await with_mailbox()
    broken, doll = await stand.b.connect("broken"), await stand.b.connect("doll")

    def fail() -> None:
        raise ValueError("a mistake of ours")

    broken.look_again = fail  # type: ignore[method-assign]
    stand.read_at_a(text(0, "broken"), text(1))
    await eventually(lambda: doll.looks == 1)
    assert stand.b.counters.dropped == {"fault": 1}


@pytest.mark.logs("cocoa.router", "routing failed")
@pytest.mark.parametrize("has_mailbox", [False, True])
async def test_an_error_in_sending_to_a_server_costs_only_that_message_and_the_batch_is_done(
    has_mailbox: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = await with_mailbox() if has_mailbox else Stand()
    await stand.b.connect("there")
    here = await stand.a.connect("here")

    def fail(server: str, message: RelayMessage) -> asyncio.Future[Fate]:
        raise OverflowError("a mistake of ours")

    monkeypatch.setattr(stand.a.relay, "send", fail)
    stand.read_at_a(text(0, "there"), text(1, "here"), text(2, "there", "s"))
    stand.read_at_a(text(3, "here"))
    await eventually(lambda: stand.done == [1, 1])
    assert (here.texts, stand.a.counters.dropped) == (["1", "3"], {"fault": 2})


@pytest.mark.logs("cocoa.router", "routing failed")
async def test_an_error_in_preparing_a_message_for_a_server_costs_only_that_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand = Stand()
    here, _ = await stand.a.connect("here"), await stand.b.connect("there")

    def fail(record: Record) -> Terms | None:
        if record.address == "there":
            raise ValueError("a mistake of ours")
        return None

    monkeypatch.setattr(stand.a.router._local, "terms_of", fail)
    stand.read_at_a(text(0, "there"), text(1, "here"))
    assert (here.texts, stand.done, stand.a.counters.dropped) == (["1"], [1], {"fault": 1})


@pytest.mark.logs("cocoa.router", "routing failed")
async def test_an_error_in_routing_a_batch_does_not_hold_back_its_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand()
    await stand.b.connect("there")

    def fail(*arguments: object) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(stand.a.router._forwarding, "forward", fail)
    stand.read_at_a(text(0, "there"))
    assert (stand.done, stand.a.counters.dropped) == ([1], {"fault": 1})


async def test_with_a_mailbox_a_wake_up_that_is_not_taken_loses_nothing_and_the_batch_is_done() -> None:
    stand = await with_mailbox(RelayLimits(max_messages=0))
    await stand.b.connect("doll")
    stand.read_at_a(text(0), text(1, interim_of="s"))
    await eventually(lambda: stand.done == [1])
    assert stand.a.counters.dropped == {"overflow": 1}  # the hypothesis
    assert stand.a.mailbox is not None
    assert (await stand.a.mailbox.look("doll")).last == (1, 0)


async def test_a_server_is_never_asked_to_forward_to_itself() -> None:
    """A device whose upgrade is under way here has a holder, and no connection yet."""
    stand = Stand()
    await stand.a.presence.claim("doll")
    stand.read_at_a(text(0))
    await asyncio.sleep(0)
    assert (stand.a.counters.unknown_device, stand.a.relay.counters.accepted) == (1, {})
