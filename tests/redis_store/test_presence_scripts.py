"""The scripts of presence on a real Redis, and the simulated one beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocoa_tornado.presence import redis_scripts as scripts
from cocoa_tornado.presence.redis_scripts import META, ClaimItem, Granted
from cocoa_tornado.rules.claims import Claim
from testing.redis_server import RedisServer
from tests.presence.script_cases import *  # noqa: F403  # the cases of every store
from tests.presence.script_stands import RealStore, SimulatedStore, Stand

pytestmark = pytest.mark.redis


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    with redis_server.client() as made:
        yield made
        made.flushall()


@pytest.fixture
def store(client: Any) -> RealStore:
    return RealStore(client)


EPOCHS = st.sampled_from("ab")
NUMBERS = st.integers(1, 3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.sampled_from(["c", "d"]), st.sampled_from(["r1", "r2"])),
        st.tuples(st.just("beat"), EPOCHS, st.integers(0, 2), st.sampled_from(["", "{}"])),
        st.tuples(st.just("claim"), EPOCHS, NUMBERS, st.integers(1, 2)),
        st.tuples(st.just("release"), EPOCHS, NUMBERS),
        st.tuples(st.just("holders")),
        st.tuples(st.just("fence"), EPOCHS, st.integers(0, 2)),
        st.tuples(st.just("settle")),
        st.tuples(st.just("leave"), EPOCHS),
    ),
    max_size=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_the_simulated_redis_answers_as_a_real_one(client: Any, steps: list[tuple[Any, ...]]) -> None:
    client.flushall()
    stands = Stand(RealStore(client)), Stand(SimulatedStore())
    for stand in stands:
        stand.join("b")
    for name, *arguments in steps:
        real, simulated = (_outcome(stand, name, arguments) for stand in stands)
        assert real == simulated


def _outcome(stand: Stand, name: str, arguments: list[Any]) -> Any:
    try:
        return getattr(stand, name)(*arguments)
    except Exception as error:
        return type(error)


# -- keys that something else has written, and commands that are forbidden


def test_a_bucket_of_another_type_costs_only_its_own_devices_their_claim(client: Any, store: RealStore) -> None:
    stand = Stand(store)
    stand.settle()
    assert stand.claim("a", 1) == Granted(1)
    client.set(scripts.bucket_key("doll"), "mine")
    found = stand.claim_all("a", [ClaimItem("doll", 2), ClaimItem("bear", 3), ClaimItem("doll", 4)])
    assert found == ["foreign", Granted(2), "foreign"]
    released = [("doll", Claim("a", 1)), ("bear", Claim("a", 3))]
    assert scripts.done(store.run("release", scripts.release_arguments(stand.stamp, released)))
    assert stand.holders("doll", "bear") == [[], []]
    assert client.get(scripts.bucket_key("doll")) == b"mine"


def test_a_bucket_that_may_not_be_read_fails_the_whole_batch(client: Any, store: RealStore) -> None:
    """And nothing is written: it is a fault of the deployment."""
    stand = Stand(store)
    stand.settle()
    client.execute_command("ACL", "SETUSER", "default", "-hget")
    try:
        with pytest.raises(redis.ResponseError, match=r"can.t run this command|ermission"):
            stand.claim("a", 1)
    finally:
        client.execute_command("ACL", "SETUSER", "default", "+hget")
    assert client.hget(META, "gen") is None


# -- a Redis that rejects writes


@pytest.fixture
def full(client: Any, store: RealStore) -> Iterator[Stand]:
    """Memory is full after a device was granted."""
    stand = Stand(store)
    stand.settle()
    stand.claim("a", 1)
    client.config_set("maxmemory", 1)
    client.config_set("maxmemory-policy", "noeviction")
    yield stand
    client.config_set("maxmemory", 0)


def test_without_memory_no_device_is_granted_and_nothing_is_changed(full: Stand, client: Any) -> None:
    with pytest.raises(redis.ResponseError, match="maxmemory"):
        full.claim_all("a", [ClaimItem("bear", 2), ClaimItem("cat", 3)])
    assert full.holders("bear", "cat") == [[], []]
    assert client.hget(META, "gen") == b"1"


def test_without_memory_servers_stay_members_and_slots_become_free(full: Stand) -> None:
    assert full.beat("a", 0, "{}").mine == 1
    assert full.release("a", 1)
    assert full.join("c").is_settled
    assert full.fence("c", 0)
    assert full.leave("a")


def test_without_replicas_nothing_is_written(client: Any, store: RealStore) -> None:
    """A master that is cut off must not answer BEAT: others may have a new master by then."""
    stand = Stand(store)
    client.config_set("min-replicas-to-write", 1)
    try:
        for ask in (lambda: stand.beat("a", 0), lambda: stand.claim("a", 1, mode="keep"), lambda: stand.fence("a", 0)):
            with pytest.raises(redis.ResponseError, match="replicas"):
                ask()
    finally:
        client.config_set("min-replicas-to-write", 0)
    assert stand.beat("a", 0).mine == 1
