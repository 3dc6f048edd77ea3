"""Records of the quarantine topic: their headers, markers, and what goes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.quarantined import (
    MAX_LIST_HEADERS_BYTES,
    MAX_LIST_KEY_BYTES,
    Newest,
    Origin,
    Row,
    marker_of,
    read_copy,
    requeued_by,
    returned,
    split,
)

OWN = [("cocoa.reason", b"not_json"), ("cocoa.topic", b"results"), ("cocoa.partition", b"7"), ("cocoa.offset", b"42")]
names = st.sampled_from(["mine", "cocoa.reason", "cocoa.requeued", "cocoa.ttl", "cocoa.offset", "cocoa.dropped-bytes"])
strangers = st.lists(st.tuples(names, st.none() | st.binary(max_size=4)), max_size=6)


def row(offset: int = 0, *, partition: int = 0, at_ms: int = 0, value: bytes = b"x", headers: object = ()) -> Row:
    return Row(partition, offset, at_ms, b"doll", value, list(headers))  # type: ignore[call-overload]


@given(strangers)
def test_whatever_headers_a_stranger_sends_the_gateways_own_are_believed(
    theirs: list[tuple[str, bytes | None]],
) -> None:
    assert split([*theirs, *OWN]) == (theirs, Origin("not_json", "results", 7, 42))


@given(strangers)
def test_no_copy_is_taken_for_a_marker(theirs: list[tuple[str, bytes | None]]) -> None:
    assert requeued_by([*theirs, *OWN]) is None


@given(st.integers(0, 2**63 - 1))
def test_a_marker_names_its_copy(offset: int) -> None:
    assert requeued_by(marker_of(offset)) == offset


def test_a_record_that_nobody_has_copied_has_no_origin() -> None:
    assert split([("mine", b"1")]) == ([("mine", b"1")], Origin())


def test_parts_that_the_topic_did_not_take_are_named() -> None:
    _, origin = split([*OWN, ("cocoa.dropped-bytes", b"5000"), ("cocoa.dropped-headers", b"2")])
    assert origin.dropped == (("bytes", 5000), ("headers", 2))


def test_as_it_is_a_record_keeps_its_value_and_its_own_headers() -> None:
    headers = [("mine", b"1"), ("cocoa.ttl", b"9")]
    back = returned(read_copy(row(headers=[*headers, *OWN])), b"")
    assert back == (b"doll", b"x", headers)


def test_a_corrected_value_keeps_the_key_and_loses_the_headers_named_cocoa() -> None:
    back = returned(read_copy(row(headers=[("mine", b"1"), ("cocoa.ttl", b"9"), *OWN])), b"y")
    assert back == (b"doll", b"y", [("mine", b"1")])


def test_a_value_is_cut_and_its_length_is_known() -> None:
    record = read_copy(row(value=b"x" * 100), 10)
    assert (record.value, record.value_bytes) == (b"x" * 10, 100)


def test_a_list_holds_little_of_large_keys_and_headers() -> None:
    many = [("x" * 1_000_000, b"y" * 1_000_000), *[("mine", b"z" * 1_000)] * 1_000]
    large = row(headers=[*many, ("cocoa.reason", b"r" * 1_000_000)])._replace(key=b"k" * 1_000_000)
    whole, listed = read_copy(large), read_copy(large, 10)
    assert (whole.key, whole.headers) == (large.key, many)
    assert listed.key == b"k" * MAX_LIST_KEY_BYTES
    assert listed.headers[0] == ("x" * MAX_LIST_KEY_BYTES, b"y" * MAX_LIST_KEY_BYTES)
    assert sum(len(name) + len(value or b"") for name, value in listed.headers) <= MAX_LIST_HEADERS_BYTES
    assert listed.origin.reason == "r" * MAX_LIST_KEY_BYTES


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=30), st.integers(1, 5))
def test_the_newest_are_kept_in_order_however_they_are_read(places: list[tuple[int, int]], limit: int) -> None:
    rows = [row(offset, partition=partition, at_ms=at) for offset, (partition, at) in enumerate(places)]
    newest = Newest(limit, 10)
    for each in rows:
        newest.take([each])
    found = [(each.timestamp_ms, each.offset) for each in newest.records()]
    assert found == sorted(((each.timestamp_ms, each.offset) for each in rows), reverse=True)[:limit]


def test_what_has_a_marker_is_requeued_and_a_marker_is_no_record() -> None:
    newest = Newest(9, 10)
    newest.take([row(0), row(1), row(2, headers=marker_of(0)), row(0, partition=1)])
    assert {(each.partition, each.offset): each.is_requeued for each in newest.records()} == {
        (0, 0): True,
        (0, 1): False,
        (1, 0): False,
    }
