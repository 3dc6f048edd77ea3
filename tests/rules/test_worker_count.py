"""How many speech workers a machine, or a container's share of it, can feed and hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.worker_count import GATEWAY_BYTES, Machine, WorkerCount, count_workers

MIB = 1024 * 1024
SIZE = 192 * MIB


@pytest.mark.parametrize(
    ("machine", "count"),
    [
        (Machine(8), WorkerCount(7, "processors", None)),
        (Machine(8, None, 64 * 1024 * MIB), WorkerCount(7, "processors", 340)),
        # A container of two processors and a gigabyte on a large host.
        (Machine(64, 2.0, 1024 * MIB), WorkerCount(1, "processors", 4)),
        (Machine(64, 3.5, 1024 * MIB), WorkerCount(3, "processors", 4)),
        (Machine(64, 0.3, 1024 * MIB), WorkerCount(1, "minimum", 4)),
        (Machine(64, None, 1024 * MIB), WorkerCount(4, "memory", 4)),
        (Machine(2, 16.0, None), WorkerCount(1, "processors", None)),
        (Machine(1, None, None), WorkerCount(1, "minimum", None)),
        (Machine(8, None, 100 * MIB), WorkerCount(1, "minimum", 0)),
    ],
)
def test_the_default_is_what_processors_and_memory_allow(machine: Machine, count: WorkerCount) -> None:
    assert count_workers(0, machine, SIZE) == count


def test_an_explicit_number_wins_and_is_known_to_exceed_the_memory() -> None:
    machine = Machine(64, 2.0, 1024 * MIB)
    assert count_workers(4, machine, SIZE) == WorkerCount(4, "setting", 4)
    assert not count_workers(4, machine, SIZE).exceeds_memory
    assert count_workers(5, machine, SIZE).exceeds_memory
    assert not count_workers(500, Machine(64), SIZE).exceeds_memory


@given(
    st.integers(1, 512),
    st.none() | st.floats(0.01, 600),
    st.none() | st.integers(0, 1 << 42),
    st.integers(MIB, 8192 * MIB),
)
def test_the_default_never_exceeds_what_there_is_unless_it_is_the_one_that_must_be(
    cores: int, quota: float | None, memory_bytes: int | None, worker_bytes: int
) -> None:
    count = count_workers(0, Machine(cores, quota, memory_bytes), worker_bytes)
    assert count.workers >= 1
    if count.workers > 1:
        assert count.workers < cores
        assert quota is None or count.workers < quota + 1
        assert memory_bytes is None or GATEWAY_BYTES + count.workers * worker_bytes <= memory_bytes
