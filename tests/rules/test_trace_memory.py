"""The memory of the last batches: what it finds, what it forgets, and its bound."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.relay.messages import ForwardedMessage
from cocoa_tornado.routing.address import Devices, Group
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.box import Lane
from cocoa_tornado.rules.records import Record
from cocoa_tornado.rules.retracted import RetractedRun
from cocoa_tornado.rules.terms import Terms, interim_terms
from cocoa_tornado.rules.trace_memory import SLICE, BatchTrace, Found, Outcome, TraceMemory, outcome_in_box

SOURCE = "results/0"


def memory_of(max_bytes: int = 1_000_000) -> TraceMemory:
    return TraceMemory(max_bytes, lambda: 1_000.0)


def record(number: int, device_id: str = "doll", name: str | None = None) -> Record:
    return Record(device_id, b'{"n":%d}' % number, 7, options=None if name is None else Options(id=name))


def found_by(memory: TraceMemory, message_id: str) -> list[Found]:
    return [found for found in memory.search(message_id) if found is not None]


def payloads(memory: TraceMemory, message_id: str) -> list[bytes]:
    return [found.payload for found in found_by(memory, message_id)]


def test_a_record_is_found_by_its_partition_and_offset() -> None:
    memory = memory_of()
    memory.remember([record(0), record(1), record(2)], [10, 12, 10], [(SOURCE, 2), ("results/1", 1)])
    assert payloads(memory, "results/0/10") == [b'{"n":0}']
    assert payloads(memory, "results/0/12") == [b'{"n":1}']
    assert payloads(memory, "results/1/10") == [b'{"n":2}']
    assert found_by(memory, "results/1/10")[0].origin == ("results/1", 10)


@pytest.mark.parametrize("name", ["results/0/11", "results/2/10", "0/10", "/10", "results/0/", "results/0/x", "", "10"])
def test_what_names_no_record_finds_none(name: str) -> None:
    memory = memory_of()
    memory.remember([record(0)], [10], [(SOURCE, 1)])
    assert payloads(memory, name) == []


def test_a_record_is_found_by_its_own_id_even_if_that_looks_like_an_offset() -> None:
    memory = memory_of()
    memory.remember([record(0, name="mine"), record(1, name="results/0/10")], [10, 11], [(SOURCE, 2)])
    assert payloads(memory, "mine") == [b'{"n":0}']
    assert payloads(memory, "results/0/10") == [b'{"n":0}', b'{"n":1}']


def test_a_note_belongs_to_its_message_only() -> None:
    memory = memory_of()
    memory.remember([record(0), record(1)], [0, 1], [(SOURCE, 2)])
    memory.note(b"\x81\x07" + b'{"n":1}', 7, "doll", "overflow")
    memory.note(b'{"n":0}', 8, "doll", "overflow")
    assert found_by(memory, "results/0/0")[0].outcomes() == {}
    assert found_by(memory, "results/0/1")[0].outcomes() == {"doll": "overflow"}


def test_a_note_is_not_of_a_later_batch() -> None:
    memory = memory_of()
    memory.remember([record(0)], [0], [(SOURCE, 1)])
    memory.note(b'{"n":0}', 7, "doll", "expired")
    memory.remember([record(0)], [1], [(SOURCE, 1)])
    assert found_by(memory, "results/0/0")[0].outcomes() == {"doll": "expired"}
    assert found_by(memory, "results/0/1")[0].outcomes() == {}


def test_the_last_note_of_a_device_counts() -> None:
    memory = memory_of()
    memory.remember([record(0)], [0], [(SOURCE, 1)])
    memory.note(b'{"n":0}', 7, "doll", "not_connected")
    memory.note(b'{"n":0}', 7, "doll", "fault")
    assert found_by(memory, "results/0/0")[0].outcomes() == {"doll": "fault"}


def test_a_memory_of_nothing_remembers_nothing() -> None:
    memory = memory_of(0)
    memory.remember([record(0)], [0], [(SOURCE, 1)])
    memory.note(b'{"n":0}', 7, "doll", "fault")
    assert (payloads(memory, "results/0/0"), memory.size) == ([], 0)


def test_what_is_stored_or_forwarded_for_many_devices_counts() -> None:
    memory = memory_of()
    batch = memory.remember([record(0)], [0], [(SOURCE, 1)])
    before = memory.size
    parts = [(0, f"device-{number}") for number in range(1_000)]
    memory.stored(batch, parts, range(1_000))
    memory.forwarded(batch, "other", parts)
    assert memory.size == before + 200_000
    memory.note_recipients(b"{}", 7, [], {f"device-{number}": number for number in range(500)})
    assert memory.size > before + 250_000


def test_the_devices_that_a_record_or_a_forwarded_message_names_count() -> None:
    ids = [f"device-{number}" for number in range(1_000)]
    for address in (Devices(tuple(ids)), Group("kitchen", frozenset(ids))):
        memory = memory_of()
        memory.remember([Record(address, b"{}", 7)], [0], [(SOURCE, 1)])
        assert memory.size > 100_000
        memory.remember_forward([ForwardedMessage(address, b"{}", 7, SOURCE, 0)], "other")
        assert memory.size > 200_000
    memory = memory_of()
    memory.remember_forward([ForwardedMessage("doll", b"{}", 7, SOURCE, 0, places=dict.fromkeys(ids, 1))], "other")
    assert memory.size > 100_000


def test_a_long_search_pauses() -> None:
    memory = memory_of(100_000_000)
    for first in range(0, 4 * SLICE, 100):
        numbers = range(first, first + 100)
        memory.remember([record(number) for number in numbers], numbers, [(SOURCE, 100)])
    assert sum(found is None for found in memory.search("nothing")) >= 3


@given(
    st.lists(st.one_of(st.integers(1, 40), st.sampled_from(["note", "stored", "forwarded"])), max_size=60),
    st.integers(0, 60_000),
)
def test_it_keeps_its_bound_and_no_batch_without_its_notes(events: list[int | str], bound: int) -> None:
    """A batch is forgotten with all before it, and none that is remembered lacks a note."""
    memory, offset = TraceMemory(bound, lambda: 0.0), 0
    noted: deque[tuple[int, Outcome]] = deque()
    batches: list[BatchTrace] = []
    for event in events:
        if isinstance(event, int):
            records = [record(offset + at) for at in range(event)]
            batches.append(memory.remember(records, range(offset, offset + event), [(SOURCE, event)]))
            offset += event
        elif event == "stored" and batches:
            batch = batches[len(batches) // 2]  # it may be forgotten already
            parts = [(at, "doll") for at in range(len(batch.records))]
            memory.stored(batch, parts, range(len(parts)))
        elif event == "forwarded" and batches:
            memory.forwarded(batches[-1], "other", [(0, "doll")] * 30)
        elif event == "note" and offset:
            memory.note(b'{"n":%d}' % (offset - 1), 7, "doll", "overflow")
            noted.append((offset - 1, "overflow"))
        assert 0 <= memory.size <= bound
    remembered = [bool(payloads(memory, f"{SOURCE}/{at}")) for at in range(offset)]
    assert remembered == sorted(remembered)
    for at, outcome in noted:
        if remembered[at]:
            assert found_by(memory, f"{SOURCE}/{at}")[0].outcomes() == {"doll": outcome}


@pytest.mark.parametrize(
    ("lane", "in_box", "expired", "may_collapse", "outcome"),
    [
        (Lane(last=9, acked=5), False, False, False, "acknowledged"),
        (Lane(last=9, acked=4, written=5), True, False, False, "written"),
        (Lane(last=9, written=5), False, False, False, "written"),
        (Lane(last=9), True, False, False, "waiting"),
        (Lane(last=9, gone=5), False, True, False, "expired"),
        (Lane(last=9, gone=5), False, False, False, "overflow"),
        (Lane(last=9, retracted=(RetractedRun(5, 5, 1),)), False, False, True, "collapsed"),
        (Lane(last=9, retracted=(RetractedRun(5, 5, 1),)), False, False, False, "not_connected"),
        (Lane(last=9, retracted=(RetractedRun(4, 4, 1),)), True, False, True, "waiting"),
    ],
)
def test_the_outcome_of_a_stored_message_follows_from_its_box(
    lane: Lane, in_box: bool, expired: bool, may_collapse: bool, outcome: str
) -> None:
    assert outcome_in_box(lane, 5, is_in_box=in_box, has_expired=expired, may_collapse=may_collapse) == outcome


# -- the messages of a device


def last_of(memory: TraceMemory, device_id: str = "doll", most: int = 20) -> list[Found]:
    return [found for found in memory.of_device(device_id, most) if found is not None]


def test_the_last_messages_of_a_device_are_found_the_newest_first_and_no_more_than_asked_for() -> None:
    memory = memory_of()
    memory.remember([record(0), record(1, "bear"), record(2)], [0, 1, 2], [(SOURCE, 3)])
    memory.remember([record(3), record(4, name="mine")], [3, 4], [(SOURCE, 2)])
    assert [found.origin[1] for found in last_of(memory)] == [4, 3, 2, 0]
    assert [found.origin[1] for found in last_of(memory, most=3)] == [4, 3, 2]
    assert [found.id for found in last_of(memory, most=2)] == ["mine", None]
    assert last_of(memory, "stranger") == []


def test_messages_for_several_devices_are_among_those_of_each_recipient() -> None:
    memory = memory_of()
    kitchen = Record(Group("kitchen"), b'{"n":1}', 7)
    memory.remember([record(0), kitchen, Record(Devices(("doll", "bear")), b'{"n":2}', 7)], [0, 1, 2], [(SOURCE, 3)])
    memory.note_recipients(b'{"n":1}', 7, ["bear", "doll"], {"bear": 4, "doll": 5})
    memory.note_recipients(b'{"n":2}', 7, ["doll", "bear"])
    memory.note_all(b'{"n":1}', 7, ["cat"], "not_connected")
    assert [found.origin[1] for found in last_of(memory)] == [2, 1, 0]
    (second, first) = last_of(memory, "bear")
    assert (first.stored(), second.stored()) == ({"bear": 4}, {})
    assert first.recipients() == ["bear"]  # its notes are about this device alone
    (found,) = last_of(memory, "cat")
    assert found.outcomes() == {"cat": "not_connected"}


def test_what_another_server_has_forwarded_is_found_and_interims_are_not() -> None:
    memory = memory_of()
    interim = Record("doll", b'{"n":9}', 7, interim_of="s")
    memory.remember([record(0), interim], [0, 1], [(SOURCE, 2)])
    message = ForwardedMessage("doll", b'{"n":1}', 7, "results/1", 5, Terms(id="mine"))
    memory.remember_forward([message, ForwardedMessage("doll", b"{}", 7, "results/1", 6, interim_terms("s"))], "b")
    assert [(found.origin, found.id) for found in last_of(memory)] == [(("results/1", 5), "mine"), ((SOURCE, 0), None)]


def test_only_what_is_about_a_device_is_noted_of_its_messages() -> None:
    memory = memory_of()
    memory.remember([record(0), Record(Group("kitchen"), b'{"n":1}', 8)], [0, 1], [(SOURCE, 2)])
    memory.note_recipients(b'{"n":1}', 8, ["doll", "bear"])
    memory.note(b'{"n":1}', 8, "bear", "overflow")
    memory.note(b'{"n":1}', 8, "doll", "expired")
    memory.note(b"\x81\x07" + b'{"n":0}', 7, "doll", "slow_consumer")
    assert [found.outcomes() for found in last_of(memory)] == [{"doll": "expired"}, {"doll": "slow_consumer"}]


def test_a_search_for_the_messages_of_a_device_pauses() -> None:
    memory = memory_of(100_000_000)
    for start in range(0, 5 * SLICE, 100):
        numbers = range(start, start + 100)
        memory.remember([record(number, "bear") for number in numbers], list(numbers), [(SOURCE, 100)])
        memory.note_recipients(b"{}", 9, ["bear"] * 100)
    found = list(memory.of_device("doll", 20))
    assert found.count(None) == len(found) >= 9


@given(st.lists(st.tuples(st.sampled_from(["doll", "bear"]), st.booleans()), max_size=30), st.integers(1, 8))
def test_each_message_of_a_device_that_is_remembered_is_found_once(sent: list[tuple[str, bool]], most: int) -> None:
    memory = memory_of()
    expected: list[int] = []
    for number, (device_id, is_wide) in enumerate(sent):
        payload = b'{"n":%d}' % number
        address = Devices((device_id, "cat")) if is_wide else device_id
        memory.remember([Record(address, payload, 7)], [number], [(SOURCE, 1)])
        if is_wide:
            memory.note_recipients(payload, 7, [device_id, "cat"])
        expected += [number] if device_id == "doll" else []
    assert [found.origin[1] for found in last_of(memory, most=most)] == expected[::-1][:most]
