"""Random walks of several servers that share a Redis, in simulated time; ``python -m tests.presence.simulator`` runs
more of them."""

from __future__ import annotations

import pytest

from .simulator.walk import Walk

SEEDS = 2000
PARTS = 8
FULL_EVERY = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_no_walk_breaks_an_invariant(part: int) -> None:
    found = {
        seed: faults
        for seed in range(part, SEEDS, PARTS)
        if (faults := Walk(seed, wants_end=seed // PARTS % FULL_EVERY == 0).run())
    }
    assert found == {}


@pytest.mark.parametrize("planted", ["guard", "beat", "identity"])
def test_a_planted_fault_is_found(planted: str) -> None:
    assert any(Walk(seed, planted, wants_end=False).run() for seed in range(SEEDS))
