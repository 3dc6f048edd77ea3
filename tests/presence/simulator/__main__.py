"""Run walks: ``python -m tests.presence.simulator --seeds 100000 --from 0``."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from functools import partial

from .faults import FAULTS
from .walk import Walk


def walk(planted: str, is_short: bool, seed: int) -> tuple[int, dict[str, str], int, Counter[str]]:
    made = Walk(seed, planted, wants_end=not is_short)
    faults = made.run()
    return seed, faults, made.events, made.oracle.stats


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.presence.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--fault", choices=("none", "all", *FAULTS), default="none", help="plant it")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="end the walks with the chaos, as CI does for most")
    parser.add_argument("--trace", type=int, metavar="SEED", help="print the events of one walk")
    options = parser.parse_args()
    planted = [""] if options.fault == "none" else [*FAULTS] if options.fault == "all" else [options.fault]
    if options.trace is not None:
        made = Walk(options.trace, planted[0], wants_end=not options.short)
        made.trace = print
        print(made.run())
        return 0
    has_failed = False
    for name in planted:
        found = run(name, range(options.first, options.first + options.seeds), options.jobs, options.short)
        has_failed |= found != bool(name)
    return int(has_failed)


def run(planted: str, seeds: range, jobs: int, is_short: bool) -> bool:
    """Whether anything was found."""
    kinds: dict[str, tuple[int, str]] = {}
    counts: Counter[str] = Counter()
    stats: Counter[str] = Counter()
    events, began_at = 0, time.perf_counter()
    with multiprocessing.Pool(jobs) as pool:
        for seed, faults, count, its_stats in pool.imap_unordered(partial(walk, planted, is_short), seeds, 16):
            events += count
            stats.update(its_stats)
            counts.update(list(faults))
            for kind, detail in faults.items():
                if kind not in kinds or seed < kinds[kind][0]:
                    kinds[kind] = (seed, detail)
    took_s = time.perf_counter() - began_at
    fault = f"planted: {FAULTS[planted].what}; " if planted else ""
    print(f"{fault}{len(seeds)} seeds, {events} events, {events / took_s:.0f} events/s; {dict(sorted(stats.items()))}")
    for kind, (seed, detail) in sorted(kinds.items()):
        print(f"  {kind}: {counts[kind]} walks, first seed {seed}: {detail}")
    sys.stdout.flush()
    return bool(kinds)


if __name__ == "__main__":
    sys.exit(main())
