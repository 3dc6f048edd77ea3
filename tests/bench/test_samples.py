"""Statistics of the samples: medians, ranges, ratios, sizes that fit."""

from __future__ import annotations

import pytest

from bench.samples import FLOOR, KEY_METRIC, METRICS, Sample, Spread, fitting, half_of_saturation, sections


def costs(contender: str, *values: float, case: str = "500 devices") -> list[Sample]:
    return [Sample("broker", case, contender, "cpu_us", value, turn) for turn, value in enumerate(values)]


def test_a_spread_is_the_median_the_range_and_the_total_of_the_rounds() -> None:
    assert Spread.of([30.0, 10.0, 14.0]) == Spread(median=14.0, low=10.0, high=30.0, total=54.0)


def test_ratios_are_of_medians_to_the_first_contender_and_to_the_floor() -> None:
    samples = [*costs(FLOOR, 5.0), *costs("ours", 10.0, 50.0, 20.0), *costs("theirs", 30.0, 40.0, 50.0)]
    (section,) = sections(samples, "ours")
    assert [(row.contender, row.ratio, row.floors) for row in section.rows] == [
        (FLOOR, 0.25, 1.0),
        ("ours", 1.0, 4.0),
        ("theirs", 2.0, 8.0),
    ]


def test_where_the_first_contender_did_not_finish_there_is_no_ratio() -> None:
    (section,) = sections(costs("theirs", 30.0), "ours")
    assert section.rows[0].ratio is None
    assert section.rows[0].floors is None


def test_cases_stay_apart_and_parts_come_in_their_order() -> None:
    samples = [
        Sample("storm", "1,000 at once", "ours", "all_in_s", 1.5),
        *costs("ours", 1.0, case="500 devices"),
        *costs("ours", 2.0, case="10,000 devices"),
    ]
    found = [(section.part, section.case) for section in sections(samples, "ours")]
    assert found == [("broker", "500 devices"), ("broker", "10,000 devices"), ("storm", "1,000 at once")]


def test_a_section_names_the_metrics_that_any_contender_has() -> None:
    samples = [*costs("ours", 1.0), Sample("broker", "500 devices", "theirs", "lost", 0.0)]
    assert sections(samples, "ours")[0].metrics == ["cpu_us", "lost"]


def test_every_part_is_compared_by_a_metric_that_exists() -> None:
    assert set(KEY_METRIC.values()) <= set(METRICS)


def test_half_of_saturation_is_half_a_second_of_processor_time_each_second() -> None:
    assert half_of_saturation(cpu_us=100.0, most=20_000.0) == 5_000.0
    assert half_of_saturation(cpu_us=10.0, most=20_000.0) == 20_000.0


@pytest.mark.parametrize(
    ("most", "wanted", "left_out"),
    [
        (60_000, [100, 10_000, 50_000], 0),
        (19_754, [100, 10_000, 19_700], 1),
        (11_000, [100, 10_000], 1),
        (5_000, [100, 5_000], 2),
    ],
)
def test_sizes_that_do_not_fit_are_replaced_once_and_never_silently(
    most: int, wanted: list[int], left_out: int
) -> None:
    found, notes = fitting([100, 10_000, 50_000], most)
    assert found == wanted
    assert len(notes) == left_out
