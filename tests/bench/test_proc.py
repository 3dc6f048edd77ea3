"""Reading /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from bench.proc import (
    Memory,
    ahead,
    cpu_s,
    family,
    memory,
    parse_idle_ticks,
    parse_kib,
    parse_parent,
    parse_tcp_pages,
    split,
)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmark runs on Linux")


TAKES_8_MIB = """
import mmap
print(flush=True)
input()
taken = mmap.mmap(-1, 8 << 20)
taken.write(bytes([1]) * (8 << 20))
print(flush=True)
input()
"""


def test_the_server_has_one_core_and_the_load_the_others() -> None:
    cores = split(frozenset({0, 1, 5}))
    assert cores.server == frozenset({5})
    assert cores.load == frozenset({0, 1})


def test_one_core_is_shared() -> None:
    cores = split(frozenset({3}))
    assert cores.server == cores.load == frozenset({3})


def test_a_process_may_be_called_anything() -> None:
    assert parse_parent("42 (a) b (c) S 17 42 42 0") == 17


def test_sizes_are_read_with_their_names() -> None:
    assert parse_kib("Pss:    434 kB\nrollup ---p [rollup]\nHugePages:  3\nSlab: 12 kB") == {"Pss": 434.0, "Slab": 12.0}


def test_pages_in_buffers_of_tcp_are_read() -> None:
    assert parse_tcp_pages("sockets: used 10\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem 261\nUDP: inuse 0 mem 7") == 261


def test_waiting_for_a_disk_counts_as_idle() -> None:
    stat = "cpu  1 1 1 1 1\ncpu0 1 2 3 40 5 6\ncpu1 1 2 3 70 8 9\nintr 1"
    assert parse_idle_ticks(stat, frozenset({1})) == 78


def test_processor_time_is_counted_in_less_than_ticks() -> None:
    before = cpu_s(os.getpid())
    end = time.process_time() + 0.002
    while time.process_time() < end:
        pass
    assert cpu_s(os.getpid()) - before >= 0.002


def test_a_process_and_what_it_has_started_are_a_family() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert {os.getpid(), child.pid} <= set(family(os.getpid()))
        assert child.stdin is not None
        child.stdin.close()


def test_a_process_is_ahead_of_the_others_where_that_is_permitted_and_afterwards_among_them() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        with ahead(child.pid) as is_ahead:
            assert os.sched_getscheduler(child.pid) == (os.SCHED_RR if is_ahead else os.SCHED_OTHER)
        assert os.sched_getscheduler(child.pid) == os.SCHED_OTHER
        assert child.stdin is not None
        child.stdin.close()


def test_memory_grows_by_what_is_taken() -> None:
    # In a process that does nothing else: threads of earlier tests would take and give back memory of their own.
    with subprocess.Popen([sys.executable, "-c", TAKES_8_MIB], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        before = memory(child.pid)
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        grown = memory(child.pid) - before
        child.stdin.close()
    assert grown.own == pytest.approx(8 * 1024, rel=0.3)


def test_memory_is_subtracted_kind_by_kind() -> None:
    assert Memory(5, 4, 3) - Memory(1, 2, 3) == Memory(4, 2, 0)
