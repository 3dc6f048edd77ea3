"""Pages of devices, and how those of several servers become one."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.admin.requests import user_of, user_text
from cocoa_tornado.admin.rows import (
    MAX_PAGE_BYTES,
    ConnectionRow,
    DeviceRow,
    FirstIds,
    Page,
    Selection,
    connected,
    merge,
    page_of,
)

ids = st.text(st.sampled_from("aböz\U0001f600~0"), min_size=1, max_size=3)


def row(device_id: str, server: str = "a", number: int = 1, groups: tuple[str, ...] = ()) -> DeviceRow:
    connection = ConnectionRow(
        server=server,
        generation=f"7.{number}",
        connected_at="2024-01-15T10:30:00Z",
        ip="192.0.2.1",
        version="1.0.0",
        rtt_ms=None,
        queue=0,
        last_activity="2024-01-15T10:30:00Z",
    )
    return DeviceRow(device_id=device_id, user_id=msgspec.Raw(b"99"), groups=groups, connections=(connection,))


def page(device_ids: set[str], selection: Selection, server: str = "a") -> Page:
    first, all_ids = FirstIds(selection), list(device_ids)
    for at in range(0, len(all_ids), 3):
        first.add(all_ids[at : at + 3])
    return page_of(first.ids, selection.limit, lambda device_id: row(device_id, server), first.fitting)


@given(st.lists(st.sets(ids, max_size=8), max_size=4), st.integers(1, 4), st.sampled_from(["", "a", "ö"]))
def test_the_pages_of_all_servers_have_every_device_once_and_in_the_order_of_its_bytes(
    servers: list[set[str]], limit: int, prefix: str
) -> None:
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        selection = Selection(prefix=prefix, after=after, limit=limit)
        pages = [page(devices, selection, f"{at}") for at, devices in enumerate(servers)]
        assert connected(pages) == sum(each.startswith(prefix) for devices in servers for each in devices)
        rows, after = merge(pages, limit)
        assert len(rows) <= limit
        seen += [each.device_id for each in rows]
        for each in rows:
            assert len(each.connections) == sum(each.device_id in devices for devices in servers)
    everyone = {each for devices in servers for each in devices if each.startswith(prefix)}
    assert seen == sorted(everyone, key=lambda device_id: device_id.encode())


def test_a_last_page_that_is_full_has_no_next() -> None:
    assert merge([page({"a", "b"}, Selection(limit=2))], 2)[1] is None
    assert merge([page({"a", "b", "c"}, Selection(limit=2))], 2)[1] == "b"


def test_a_page_ends_before_it_is_too_large_and_the_next_goes_on() -> None:
    device_ids = [f"{number:04}" for number in range(200)]
    groups = tuple("g" * 128 for _ in range(64))
    made = page_of(device_ids, 200, lambda device_id: row(device_id, groups=groups))
    assert made.more
    assert 0 < len(made.devices) < 200
    assert MAX_PAGE_BYTES <= len(msgspec.json.encode(made.devices)) < 2 * MAX_PAGE_BYTES
    assert merge([made], 200)[1] == made.devices[-1].device_id


def test_how_many_are_connected_is_unknown_if_a_server_does_not_say() -> None:
    assert connected([Page((), False, 3), Page((), False, 0)]) == 3
    assert connected([Page((), False, 3), Page((), False)]) is None


def test_a_device_that_has_gone_meanwhile_has_no_row() -> None:
    made = page_of(["a", "b", "c"], 2, lambda device_id: None if device_id == "a" else row(device_id))
    assert ([each.device_id for each in made.devices], made.more) == (["b"], True)


@given(st.integers() | st.text(st.characters(exclude_categories=["Cs"])))
def test_a_page_is_read_by_another_server_as_it_was_written(user_id: int | str) -> None:
    made = Page((msgspec.structs.replace(row("doll"), user_id=msgspec.Raw(user_text(user_id).encode())),), True)
    data = msgspec.json.encode(made)
    read = msgspec.json.decode(data, type=Page)
    assert msgspec.json.encode(read) == data
    assert user_of(bytes(read.devices[0].user_id).decode()) == user_id


def test_the_newest_connection_decides_what_a_device_is() -> None:
    old = Page((row("doll", "a", 9, ("old",)),), False)
    new = Page((row("doll", "b", 10, ("new",)),), False)
    for pages in ([old, new], [new, old]):
        ((joined,), after) = merge(pages, 10)
        assert (joined.groups, after) == (("new",), None)
        assert [each.server for each in joined.connections] == ["a", "b"]


def test_a_page_without_rows_that_has_more_hides_nobody() -> None:
    """All devices of the page have disconnected meanwhile."""
    gone = Page((), True)
    rows, _ = merge([gone, page({"x"}, Selection())], 10)
    assert [each.device_id for each in rows] == ["x"]
