from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cocoa_tornado.rules.summed_metrics import LARGEST, SMALLEST, SummedMetrics, parse, text_of, total

from ..profiles import examples


def page(counts: dict[str, int], gauge: float = 0.0, observed: tuple[float, ...] = ()) -> str:
    """What a worker exports that has counted so much."""
    registry = CollectorRegistry()
    counter = Counter("cocoa_things", 'Things, with "quotes" and \\', ["reason"], registry=registry)
    for label, count in counts.items():
        counter.labels(label).inc(count)
    Gauge("cocoa_open", "Open now", registry=registry).set(gauge)
    histogram = Histogram("cocoa_wait_seconds", "Waits", buckets=(0.1, 1.0), registry=registry)
    for value in observed:
        histogram.observe(value)
    return generate_latest(registry).decode()


def values(text: str) -> dict[str, float]:
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


COUNTS = st.dictionaries(st.text(max_size=5), st.integers(0, 2**40), max_size=4)
WORKERS = st.lists(st.tuples(COUNTS, st.integers(-1000, 1000), st.lists(st.sampled_from((0.05, 0.5, 5.0)))), max_size=4)


@given(workers=WORKERS)
@examples(100)
def test_counters_gauges_and_histograms_of_any_labels_add_up(
    workers: list[tuple[dict[str, int], int, list[float]]],
) -> None:
    pages = [page(counts, gauge, tuple(observed)) for counts, gauge, observed in workers]
    expected: dict[str, float] = {}
    for text in pages:
        for key, value in values(text).items():
            expected[key] = expected.get(key, 0.0) + value
    assert values(text_of(total(map(parse, pages)))) == expected


@given(text=st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    parse(text)


def test_a_single_page_stays_as_it_is() -> None:
    text = page({"a b": 1, 'c"}': 2}, 1.5, (0.05, 5.0))
    same = text_of(total([parse(text)]))
    assert values(same) == values(text)
    assert [line for line in same.split("\n") if line[:1] == "#"] == [
        line for line in text.split("\n") if line[:1] == "#"
    ]


def gauge(name: str, value: float) -> str:
    return f"# HELP {name} x\n# TYPE {name} gauge\n{name} {value}\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cocoa_connections", 5.0),
        ("cocoa_buffer_bytes", 5.0),
        ("process_resident_memory_bytes", 5.0),
        ("process_open_fds", 5.0),
        ("cocoa_consumer_lag_records", 3.0),
        ("cocoa_lease_age_seconds", 3.0),
        ("cocoa_mailbox_messages", 3.0),
        ("cocoa_mailbox_fan_outs", 3.0),
        ("cocoa_build_info", 3.0),
        ("cocoa_broker_ready", 2.0),
        ("process_start_time_seconds", 2.0),
    ],
)
def test_a_gauge_is_a_sum_unless_it_is_an_age_or_a_lag_or_the_same_for_all(name: str, expected: float) -> None:
    assert parse(text_of(total([parse(gauge(name, 3)), parse(gauge(name, 2))])))[name].samples == {name: expected}


def test_no_gauge_is_both_the_largest_and_the_smallest() -> None:
    for name in ("cocoa_mailbox_ready", "x_created", "process_start_time_seconds"):
        assert re.fullmatch(SMALLEST, name)
        assert not re.fullmatch(LARGEST, name)


def things(text: str) -> float:
    return sum(parse(text)["cocoa_things_total"].samples.values())


def test_counters_do_not_fall_when_a_worker_ends_or_is_silent() -> None:
    sums = SummedMetrics()
    assert things(sums.summed({1: page({"a": 5}), 2: page({"a": 7, "b": 1})})) == 13
    # 2 hangs: its latest counters stay, its gauges do not
    silent = sums.summed({1: page({"a": 6}, gauge=4)})
    assert things(silent) == 14
    assert parse(silent)["cocoa_open"].samples == {"cocoa_open": 4.0}
    sums.on_exit(2)
    assert things(sums.summed({1: page({"a": 6})})) == 14
    # the next process of number 2 counts from 0
    assert things(sums.summed({1: page({"a": 6}), 2: page({"a": 1})})) == 15
    sums.on_exit(2)
    sums.on_exit(1)
    assert things(sums.summed({1: page({"a": 1}), 2: page({"a": 1})})) == 17


def test_a_worker_that_ends_before_it_was_asked_has_no_part_in_the_sum() -> None:
    sums = SummedMetrics()
    sums.on_exit(1)
    assert things(sums.summed({2: page({"a": 1})})) == 1


def test_the_parents_own_metrics_come_last() -> None:
    text = SummedMetrics().summed({1: page({"a": 1})}, gauge("cocoa_workers", 2))
    assert text.endswith(gauge("cocoa_workers", 2.0))
