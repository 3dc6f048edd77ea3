from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.presence import redis_scripts as scripts
from cocoa_tornado.presence.redis_scripts import Holding
from cocoa_tornado.rules.claims import BUCKETS, Claim, bucket_of

from .script_cases import *  # noqa: F403  # the cases of every store
from .script_stands import SimulatedStore


@pytest.fixture
def store() -> SimulatedStore:
    return SimulatedStore()


@given(st.text(min_size=1))
def test_every_device_has_a_bucket(device_id: str) -> None:
    assert 0 <= bucket_of(device_id.encode()) < BUCKETS


def test_buckets_stay_where_they_are() -> None:
    """Servers of two releases must find the same holders."""
    assert (bucket_of(b"doll"), bucket_of("Bär".encode())) == (14989, 3662)
    assert scripts.holders_arguments("1:run", ["doll", "Bär"]) == [b"1:run", b"14989", b"doll", b"3662", "Bär".encode()]


def test_holders_are_parsed_in_their_order() -> None:
    reply = [b"holders", b"e1:7:12 e2:1:13", b""]
    held = (Holding(Claim("e1", 7), 12), Holding(Claim("e2", 1), 13))
    assert scripts.holders_replies(reply) == [held, ()]


def test_a_bucket_of_another_type_counts_as_without_holders_and_is_named() -> None:
    reply = [b"holders", b"?", b"e1:7:12"]
    assert scripts.holders_replies(reply) == [(), (Holding(Claim("e1", 7), 12),)]
    assert scripts.foreign_buckets(["doll", "bear"], reply) == {b"cocoa:{box}:p:h:14989"}
