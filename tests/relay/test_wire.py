"""What servers of one release, and of two neighboring ones, understand of each other (cocoa_tornado.relay.wire)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.relay.messages import (
    Answer,
    Challenge,
    Eviction,
    Forward,
    ForwardedMessage,
    Query,
    RelayMessage,
    Reply,
    WakeUp,
    WakeUpMembers,
)
from cocoa_tornado.relay.wire import VERSION, Decoded, decode, encode
from cocoa_tornado.routing.address import Address, Devices, Everyone, Group, User
from cocoa_tornado.rules.claims import Claim, Generation
from cocoa_tornado.rules.close_codes import CloseReason
from cocoa_tornado.rules.terms import Terms

from .stands import forward

pack = msgspec.msgpack.encode

texts = st.text(max_size=20)
numbers = st.integers(0, 2**53)
excluded = st.frozensets(texts, max_size=3)
addresses: st.SearchStrategy[Address] = st.one_of(
    texts,
    st.builds(Devices, st.lists(texts, max_size=3).map(tuple)),
    st.builds(User, st.integers() | texts, excluded),
    st.builds(Group, texts, excluded),
    st.builds(Everyone, excluded),
)
optional = st.none() | texts
terms = st.builds(
    Terms, texts, st.sampled_from(["high", "normal", "low"]), numbers, optional, optional, st.none() | numbers
)
places = st.none() | st.dictionaries(texts, st.integers(-1, 2**53), max_size=3)
forwarded = st.builds(
    ForwardedMessage,
    addresses,
    st.binary(max_size=50),
    numbers,
    texts,
    numbers,
    st.none() | terms,
    st.none() | st.integers(-1, 2**53),
    places,
)
claims = st.builds(Claim, texts, numbers)
messages: st.SearchStrategy[RelayMessage] = st.one_of(
    st.builds(Forward, st.lists(forwarded, min_size=1, max_size=4).map(tuple)),
    st.builds(WakeUp, st.lists(texts, max_size=4).map(tuple)),
    st.builds(WakeUpMembers, addresses),
    st.builds(Challenge, texts, claims, claims),
    st.builds(Answer, texts, claims, claims, st.sampled_from(["alive", "gone"])),
    st.builds(Eviction, texts, st.builds(Generation, numbers, numbers), st.builds(CloseReason, numbers, texts, texts)),
    st.builds(Query, numbers, texts, st.binary(max_size=50)),
    st.builds(Reply, numbers, st.binary(max_size=50)),
)


@given(messages)
def test_every_message_is_read_as_it_was_written(message: RelayMessage) -> None:
    assert decode(encode(message)) == Decoded(message)


@pytest.mark.parametrize("user_id", [-(2**63) - 1, -(2**63), 2**64 - 1, 2**64, 2**9999], ids=range(5))
def test_the_id_of_a_user_may_be_any_integer(user_id: int) -> None:
    message = WakeUpMembers(User(user_id, frozenset({"doll"})))
    assert decode(encode(message)) == Decoded(message)


@given(st.binary(max_size=100))
def test_any_bytes_are_skipped_and_counted(data: bytes) -> None:
    assert decode(data) == Decoded(None, 1)


@given(messages, st.integers(0, 200), st.binary(max_size=3))
def test_damaged_bytes_never_raise(message: RelayMessage, at: int, patch: bytes) -> None:
    data = encode(message)
    at %= len(data)
    decode(data[:at] + patch + data[at + len(patch) :])


@given(messages)
def test_fields_that_a_later_release_appends_are_ignored(message: RelayMessage) -> None:
    assert decode(pack([*msgspec.msgpack.decode(encode(message)), "later", {"more": 1}])) == Decoded(message)


def test_fields_that_a_later_release_appends_to_a_forwarded_message_or_its_terms_are_ignored() -> None:
    made = msgspec.structs.replace(forward(3).messages[0], terms=Terms(priority="high", id="x"))
    version, kind, ((*fields, of_terms, after, places),) = msgspec.msgpack.decode(encode(Forward((made,))))
    assert decode(pack([version, kind, [[*fields, [*of_terms, "later"], after, places, "later"]]])) == Decoded(
        Forward((made,))
    )


def test_fields_that_an_earlier_release_does_not_know_stand_for_their_defaults() -> None:
    made = ForwardedMessage("doll", b"{}", 1, "results/0", 2, Terms("s"))
    of_terms = list(Terms("s"))
    assert decode(pack([VERSION, "forward", [["doll", b"{}", 1, "results/0", 2]]])) == Decoded(
        Forward((msgspec.structs.replace(made, terms=None),))
    )
    assert decode(pack([VERSION, "forward", [["doll", b"{}", 1, "results/0", 2, of_terms]]])) == Decoded(
        Forward((made,))
    )


def test_the_place_of_a_forwarded_message_comes_after_the_fields_that_an_earlier_release_reads() -> None:
    for address in ("doll", Group("red")):
        made = ForwardedMessage(address, b"{}", 1, "results/0", 2, Terms("s"), 7, {"doll": 5})
        _, _, ((_, *fields),) = msgspec.msgpack.decode(encode(Forward((made,))))
        assert fields == [b"{}", 1, "results/0", 2, list(Terms("s")), 7, {"doll": 5}]


@pytest.mark.parametrize("data", [[VERSION, "new kind", 1], [VERSION + 1, "wake", ["doll"]], [VERSION, "wake"]])
def test_a_kind_or_a_version_of_a_later_release_is_skipped_and_counted(data: Any) -> None:
    assert decode(pack(data)) == Decoded(None, 1)


@pytest.mark.parametrize(
    "address",
    [
        ["model", "x7"],
        ["everyone", [], "but only the red ones"],
        ["group", "red"],
        [],
        [1],
        ["everyone", ["a", 1]],
        ["big user", "x", []],
    ],
)
def test_an_unknown_address_costs_its_own_message_and_never_stands_for_others(address: Any) -> None:
    known = forward(1).messages[0]
    data = pack([VERSION, "forward", [[address, b"{}", 1, "results/0", 2], list(msgspec.structs.astuple(known))]])
    assert decode(data) == Decoded(Forward((known,)), skipped=1)
    assert decode(pack([VERSION, "members", address])) == Decoded(None, 1)


def test_a_wake_up_is_what_the_mailbox_writes_in_lua() -> None:
    assert encode(WakeUp(("doll", "bear"))) == pack([1, "wake", ["doll", "bear"]])


def test_the_text_of_a_message_is_not_in_its_repr() -> None:
    assert repr(forward(1, payload=b"secret")) == ("Forward(messages=(<ForwardedMessage results/0/1 for 'doll'>,))")
