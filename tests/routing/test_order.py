"""For any order of the answers, batches are carried out in their order, and each is done once, after its last leg."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.counters import Counters
from cocoa_tornado.hub import Hub
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Doorbell, Entry, FanOut
from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.local import LocalPresence
from cocoa_tornado.presence.port import Holder
from cocoa_tornado.relay.memory import MemoryRelay
from cocoa_tornado.relay.messages import Forward, RelayMessage, WakeUp
from cocoa_tornado.relay.port import Fate
from cocoa_tornado.routing.address import Devices, Group
from cocoa_tornado.routing.router import Router
from cocoa_tornado.rules.audiences import of_group
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.claims import Generation
from cocoa_tornado.rules.records import Record

from ..clients import connect
from ..profiles import examples

HERE, THERE, NOWHERE = "here", "there", "nowhere"


class Pending:
    """Futures that a test answers, in any order."""

    def __init__(self) -> None:
        self.answers: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self.answers)

    def answer(self, which: int) -> None:
        if self.answers:
            self.answers.pop(which % len(self.answers))()


class LatePresence(LocalPresence):
    pending: Pending

    def holders(self, device_ids: Sequence[str]) -> asyncio.Future[Mapping[str, Sequence[Holder]]]:
        future: asyncio.Future[Mapping[str, Sequence[Holder]]] = asyncio.get_running_loop().create_future()
        found = {THERE: [Holder("other", Generation(0, 1))]} if THERE in device_ids else {}
        self.pending.answers.append(lambda: future.set_result(found))
        return future


class LateRelay(MemoryRelay):
    pending: Pending
    sent: list[RelayMessage]

    def send(self, server: str, message: RelayMessage) -> asyncio.Future[Fate]:
        assert server == "other"
        future: asyncio.Future[Fate] = asyncio.get_running_loop().create_future()
        self.sent.append(message)
        self.pending.answers.append(lambda: future.set_result(Fate.ACCEPTED))
        return future


class LateMailbox(MemoryMailbox):
    pending: Pending

    def append(
        self, entries: Sequence[Entry | FanOut], doorbell: Doorbell | None = None
    ) -> asyncio.Future[list[int | None]]:
        future: asyncio.Future[list[int | None]] = asyncio.get_running_loop().create_future()
        stored, steps = self._store.append(entries)

        def answer() -> None:
            future.set_result(stored)
            self._report(steps)

        self.pending.answers.append(answer)
        return future


RED = Group("red", frozenset({NOWHERE}))
ADDRESSES = st.sampled_from([HERE, THERE, NOWHERE, Devices((HERE, THERE)), Devices((THERE, NOWHERE)), RED])
Steps: TypeAlias = "list[list[str | Devices | Group] | int]"
STEPS: st.SearchStrategy[Steps] = st.lists(
    st.one_of(st.lists(ADDRESSES, min_size=1, max_size=3), st.integers(0, 5)), max_size=14
)


@examples(200)
@given(STEPS, st.booleans())
def test_in_any_order_of_answers_messages_keep_theirs(steps: Steps, mailbox: bool) -> None:
    """A list is a batch that is read; a number answers one of the questions that are open."""
    asyncio.run(_play(steps, mailbox))


async def _play(steps: Steps, has_mailbox: bool) -> None:
    pending, hub, counters = Pending(), Hub(), Counters()
    relay, box = LateRelay(), LateMailbox(BoxLimits())
    presence = LatePresence(SlotLimits, relay, lambda: 0.0)
    presence.pending = relay.pending = box.pending = pending
    relay.sent = []
    await box.start()
    client = connect(hub, HERE, groups=["red"])
    for name in (HERE, THERE, NOWHERE):
        box.join(name, frozenset({of_group("red")}))
    router = Router(hub, counters, lambda: 0.0, presence, relay, mailbox=box if has_mailbox else None)
    done: list[int] = []
    expected: dict[str, list[int]] = {HERE: [], THERE: []}
    batches = offset = 0

    for step in steps:
        if isinstance(step, int):
            pending.answer(step)
        else:
            records = [Record(address, b'{"n":%d}' % at, 0) for at, address in enumerate(step, offset)]
            for at, address in enumerate(step, offset):
                for device_id in _recipients(address, has_mailbox):
                    expected.setdefault(device_id, []).append(at)
            offsets = list(range(offset, offset + len(step)))
            offset += len(step)
            router(Batch(records, partial(done.append, batches), offsets, [("results/0", len(step))]))
            batches += 1
        await _settle()
        sent = [_number(frame) for frame in client.sent]
        assert sent == expected[HERE][: len(sent)]
        assert _forwarded(relay.sent, has_mailbox) == expected[THERE][: len(_forwarded(relay.sent, has_mailbox))]
        assert len(set(done)) == len(done)
    while len(pending):
        pending.answer(0)
        await _settle()
    assert sorted(done) == list(range(batches))
    assert [_number(frame) for frame in client.sent] == expected[HERE]
    if has_mailbox:
        assert any(isinstance(message, WakeUp) for message in relay.sent) == bool(expected[THERE])
        assert counters.kept == len(expected.get(NOWHERE, ()))
    else:
        assert _forwarded(relay.sent, has_mailbox) == expected[THERE]
        assert counters.unknown_device == len(expected.get(NOWHERE, ()))


def _recipients(address: str | Devices | Group, has_mailbox: bool) -> Sequence[str]:
    if isinstance(address, Group):
        return (HERE, THERE) if has_mailbox else (HERE,)
    return (address,) if isinstance(address, str) else address.device_ids


async def _settle() -> None:
    for _ in range(4):  # a future's callback, and what it begins
        await asyncio.sleep(0)


def _number(frame: bytes) -> int:
    return int(frame.partition(b'"n":')[2].partition(b",")[0].partition(b"}")[0])


def _forwarded(sent: Sequence[RelayMessage], has_mailbox: bool) -> list[int]:
    if has_mailbox:
        assert not any(isinstance(message, Forward) for message in sent)
    return [_number(one.payload) for message in sent if isinstance(message, Forward) for one in message.messages]
