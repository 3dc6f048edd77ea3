"""The routing decision: every message has its place, in the order of the records."""

from __future__ import annotations

from collections import Counter

from hypothesis import example, given
from hypothesis import strategies as st

from cocoa_tornado.routing.address import Devices, Everyone, Group, User, recipients
from cocoa_tornado.routing.plan import (
    Part,
    Plan,
    away_of,
    deadlines,
    in_order,
    is_fan_out,
    messages_of,
    plan,
    shared_by,
    stale_messages,
    to_append,
    without_recipient,
)
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.records import Record

from ..profiles import examples
from .anyone import DEVICES, USERS, Table, batches, device_ids, record, tables
from .anyone import GROUPS as NAMES

here_sets = st.sets(device_ids)
servers = st.lists(st.sampled_from(["x", "y"]), max_size=3)
holder_tables = st.dictionaries(device_ids, servers)
GROUPS = Table(groups={"red": ["a", "b", "c"]})


def test_a_message_goes_to_the_server_that_holds_its_device() -> None:
    found = [record("a"), record("b"), record("c")]
    messages = messages_of(found, GROUPS)
    assert plan(messages, {"a"}, {"b": ["x"]}) == Plan(
        local=((0, "a"),), forward={"x": ((1, "b"),)}, unheld=((2, "c"),)
    )


def test_one_record_for_a_group_goes_wherever_its_devices_are() -> None:
    found = [record(Group("red"))]
    where = plan(messages_of(found, GROUPS), {"b"}, {"a": ["x"]})
    assert where == Plan(((0, "b"),), {"x": ((0, "a"),)}, ((0, "c"),))


def test_a_device_that_is_here_is_here_whatever_others_say() -> None:
    found = [record("a")]
    assert plan(messages_of(found, GROUPS), {"a"}, {"a": ["x"]}) == Plan(local=((0, "a"),))


def test_each_server_of_a_device_with_several_connections_gets_its_message_once() -> None:
    found = [record("a")]
    where = plan(messages_of(found, GROUPS), (), {"a": ["x", "y", "x"]})
    assert where == Plan(forward={"x": ((0, "a"),), "y": ((0, "a"),)})


def test_a_record_without_recipients_yields_no_message() -> None:
    found = [record(Group("empty")), record(Devices(()))]
    assert messages_of(found, GROUPS) == []
    assert plan([], set(DEVICES), {}) == Plan()


def test_a_plan_cannot_be_changed() -> None:
    found = [record("a"), record("b")]
    where = plan(messages_of(found, GROUPS), (), {"a": ["x"]})
    for part in (where.forward["x"], where.unheld):
        assert isinstance(part, tuple)
    assert not hasattr(where.forward, "__setitem__")
    assert not hasattr(where, "__dict__")


@examples(200)
@given(batches, tables, here_sets, holder_tables)
@example([record(Devices(("a", "b", "a")))], Table(), {"b"}, {"a": ["x"]})
def test_every_message_is_in_one_place_and_no_other(
    batch: list[Record], table: Table, here: set[str], holders: dict[str, list[str]]
) -> None:
    messages = messages_of(batch, table)
    where = plan(messages, here, holders)
    places: Counter[Part] = Counter([*where.local, *where.unheld])
    places.update({message for of_server in where.forward.values() for message in of_server})
    assert places == Counter(messages)
    assert set(where.local) == {message for message in messages if message[1] in here}
    for server, of_server in where.forward.items():
        assert of_server
        assert all(device_id not in here and server in holders[device_id or ""] for _, device_id in of_server)
    assert all(not holders.get(device_id) for _, device_id in where.unheld)


@example([record(Group("red"))], GROUPS, {"a"}, {"a": ["x"], "b": ["x"]})
@given(batches, tables, here_sets, holder_tables)
def test_devices_that_are_here_and_elsewhere_get_their_messages_at_all_servers(
    batch: list[Record], table: Table, here: set[str], holders: dict[str, list[str]]
) -> None:
    messages = messages_of(batch, table)
    where = plan(messages, here, holders, both=messages)
    assert where._replace(forward={}) == plan(messages, here, holders)._replace(forward={})
    for server in {server for found in holders.values() for server in found}:
        forwarded = where.forward.get(server, ())
        assert sorted(forwarded) == sorted(each for each in messages if server in holders.get(each[1], ()))
        assert [at for at, _ in forwarded] == sorted(at for at, _ in forwarded)


@examples(200)
@given(batches, tables, here_sets, holder_tables)
def test_the_messages_of_a_device_stay_in_the_order_of_their_records(
    batch: list[Record], table: Table, here: set[str], holders: dict[str, list[str]]
) -> None:
    where = plan(messages_of(batch, table), here, holders)
    for part in (where.local, where.unheld, *where.forward.values()):
        assert [at for at, _ in part] == sorted(at for at, _ in part)
        for device_id in DEVICES:
            of_device = [at for at, found in part if found == device_id]
            assert of_device == sorted(set(of_device))


@given(batches, tables)
@example([record("a"), record(Group("red")), record("b")], GROUPS)
def test_with_a_mailbox_all_records_that_are_for_it_are_appended_as_messages_or_as_one_fan_out(
    batch: list[Record], table: Table
) -> None:
    messages = messages_of(batch, table, has_mailbox=True)
    stored = to_append(batch, messages)
    expected: list[Part] = []
    for at, found in enumerate(batch):
        if is_transient(found) and (found.interim_of or not (found.options or Options()).looks_into_box):
            continue
        if isinstance(found.address, (str, Devices)):
            expected += [(at, device_id) for device_id in recipients(found.address, table)]
        else:
            expected.append((at, None))
    assert list(stored) == expected
    assert all(is_transient(batch[at]) for at, _ in set(messages).difference(stored))


@given(batches, tables)
def test_messages_and_fan_outs_are_merged_in_the_order_of_the_records(batch: list[Record], table: Table) -> None:
    messages = messages_of(batch, table, has_mailbox=True)
    fan_outs = [at for at, found in enumerate(batch) if is_fan_out(found)]
    merged = in_order(messages, fan_outs)
    assert sorted(merged, key=lambda stored: stored[0]) == list(merged)
    assert [stored for stored in merged if stored[1] is not None] == messages
    assert [at for at, device_id in merged if device_id is None] == fan_outs


@given(st.integers(-5, 3_000_000), st.sampled_from([None, 0, 1, 60]), st.sampled_from([0.5, 1_000_000.0]))
def test_a_ttl_counts_from_the_timestamp_unless_that_is_absent_or_in_the_future(
    timestamp_ms: int, ttl_s: int | None, now_ms: float
) -> None:
    found = record("a", options=None if ttl_s is None else Options(ttl_s=ttl_s))._replace(timestamp_ms=timestamp_ms)
    begin_ms = timestamp_ms if 0 < timestamp_ms <= now_ms else int(now_ms)
    assert deadlines([record("b"), found], now_ms) == ({1: begin_ms + ttl_s * 1000} if ttl_s else {})


@given(batches, tables)
def test_nothing_is_made_for_a_device_that_no_record_addresses(batch: list[Record], table: Table) -> None:
    assert messages_of([record(Devices(()), interim_of="s"), record(Group("no such group"))], table) == []
    for at, device_id in messages_of(batch, table):
        alone = messages_of([batch[at]], table)
        assert (0, device_id) in alone


@given(batches, here_sets)
@example([record("a"), record(Devices(("b", "a"))), record(Group("red"))], {"a"})
def test_away_are_the_named_devices_that_are_not_here(batch: list[Record], here: set[str]) -> None:
    """The plan of a batch whose members are those that are here."""
    connected = sorted(here)
    table = Table(connected, dict.fromkeys(USERS, connected), dict.fromkeys(NAMES, connected))
    where = plan(messages_of(batch, table), here, {})
    assert set(away_of(batch, here)) == {device_id for _, device_id in where.unheld}


@given(batches, tables, here_sets, holder_tables, st.booleans())
def test_other_servers_get_shared_records_once_and_in_their_order(
    batch: list[Record], table: Table, here: set[str], holders: dict[str, list[str]], has_mailbox: bool
) -> None:
    messages = messages_of(batch, table, has_mailbox=has_mailbox)
    shared = shared_by(batch, has_mailbox=has_mailbox)
    alone, where = plan(messages, here, holders), plan(messages, here, holders, ["x", "y"], shared)
    assert where.local == alone.local
    for server in ("x", "y"):
        part = where.forward.get(server, ())
        assert [at for at, device_id in part if device_id is None] == shared
        assert [message for message in part if message[1] is not None] == [
            message for message in alone.forward.get(server, ()) if message[0] not in shared
        ]
        assert [at for at, _ in part] == sorted(at for at, _ in part)
    assert {at for at in shared} == {
        at
        for at, found in enumerate(batch)
        if isinstance(found.address, (User, Group, Everyone)) and not (has_mailbox and is_fan_out(found))
    }


def is_transient(found: Record) -> bool:
    return found.interim_of != "" or (found.options or Options())[1] == 0


@given(batches, tables)
def test_a_record_has_no_recipient_exactly_if_it_yields_no_message(batch: list[Record], table: Table) -> None:
    alone = [messages_of([found], table) for found in batch]
    assert without_recipient(batch, messages_of(batch, table)) == alone.count([])


@given(batches, tables)
def test_whether_a_fan_out_has_recipients_is_for_the_mailbox_to_say(batch: list[Record], table: Table) -> None:
    messages = messages_of(batch, table, has_mailbox=True)
    others = [found for found in batch if not is_fan_out(found)]
    expected = without_recipient(others, messages_of(others, table))
    assert without_recipient(batch, messages, has_mailbox=True) == expected


def hypothesis(device_id: str) -> Record:
    return record(device_id, interim_of="s")


def test_an_interim_is_stale_if_a_later_message_was_stored_earlier() -> None:
    batch = [hypothesis("a"), hypothesis("b"), record("a"), hypothesis("a"), record("b"), hypothesis("b")]
    messages = messages_of(batch, Table())
    assert stale_messages(batch, messages, {(2, "a")}) == {(0, "a")}
    assert stale_messages(batch, messages, {(2, "a"), (4, "b")}) == {(0, "a"), (1, "b")}
    assert stale_messages(batch, messages, set()) == set()


def test_a_message_for_now_or_never_is_stale_if_a_later_message_was_stored_earlier() -> None:
    batch = [record("a", options=Options(ttl_s=0)), record("b", options=Options(ttl_s=0)), record("a")]
    messages = messages_of(batch, Table())
    assert stale_messages(batch, messages, {(2, "a")}) == {(0, "a")}
    assert stale_messages(batch, messages, set()) == set()


@given(batches, tables, st.data())
def test_no_message_and_no_newer_interim_is_ever_stale(batch: list[Record], table: Table, data: st.DataObject) -> None:
    messages = messages_of(batch, table)
    stored = [message for message in messages if not is_transient(batch[message[0]])]
    earlier = {message for message in stored if data.draw(st.booleans())}
    stale = stale_messages(batch, messages, earlier)
    for at, message in enumerate(messages):
        later = [other for other in messages[at + 1 :] if other[1] == message[1]]
        is_known_later = not earlier.isdisjoint(later)
        assert (message in stale) == (message not in stored and is_known_later)
