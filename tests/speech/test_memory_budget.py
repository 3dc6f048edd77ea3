"""The memory that a library may take while it processes untrusted bytes."""

from __future__ import annotations

import mmap
import resource
import sys
from contextlib import suppress

import pytest

from cocoa_tornado.speech.memory_budget import MemoryBudget

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bound is Linux's")
MIB = 1 << 20


def take(mib: int) -> mmap.mmap:
    """Memory that counts as data, as a large malloc does."""
    return mmap.mmap(-1, mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def test_more_than_the_budget_is_denied_and_less_is_not() -> None:
    budget = MemoryBudget(64 * MIB)
    with budget.spending():
        take(32).close()
        with pytest.raises(OSError, match="memory"):
            take(96)


def test_what_is_kept_counts_and_what_is_given_back_does_not() -> None:
    budget, kept = MemoryBudget(64 * MIB), []
    for _ in range(10):
        with budget.spending():
            take(40).close()
    with budget.spending():
        kept.append(take(40))
    with budget.spending(), pytest.raises(OSError, match="memory"):
        take(40)
    kept.pop().close()


def test_the_process_has_its_own_limit_again_afterwards() -> None:
    limit, budget = resource.getrlimit(resource.RLIMIT_DATA), MemoryBudget(MIB)
    with suppress(ZeroDivisionError), budget.spending():
        raise ZeroDivisionError
    assert resource.getrlimit(resource.RLIMIT_DATA) == limit
    take(32).close()
