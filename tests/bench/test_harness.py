"""The order of the turns, and the handling of a contender that does not finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.contenders import Contender, Unavailable
from bench.harness import able, chosen, main, play, turns, write
from bench.load_generator import Unfinished
from bench.parts import PING_PERIOD_S, Part, Turn
from bench.plans import FULL, QUICK, Plan
from bench.proc import Cores
from bench.report import TITLES, Findings
from bench.samples import Sample
from bench.stage import Stage

STAGE = Stage(Path("load"), "127.0.0.1:9092", Path(), Cores(frozenset({1}), frozenset({0})), 40, 1)
PLAN = Plan({"broker": 2}, (500, 10_000), (), (), (), 0, 0)


def contender(name: str, prepare: Callable[[], None] = lambda: None) -> Contender:
    return Contender(name, f"what {name} is", prepare, lambda run: [name])


def costs(turn: Turn) -> Iterator[Sample]:
    yield from turn.samples("broker", "a case", cpu_us=1.0)
    if turn.name == "b":
        raise Unfinished("it hangs")


def part(with_floor: bool = False) -> Part:
    return Part(costs, lambda plan: plan.broker_devices, ("broker",), with_floor)


def test_contenders_take_turns_with_the_floor_before_them() -> None:
    cast = [contender("a"), contender("b")]
    order = [
        (turn.number, turn.devices, turn.name) for turn in turns(PLAN, part(True), cast, 20_000, STAGE, Findings())
    ]
    names = ["floor", "a", "b"]
    assert order == [(number, size, name) for number in (0, 1) for size in (500, 10_000) for name in names]


def test_one_that_does_not_finish_is_recorded_and_has_no_further_turn_of_that_size() -> None:
    findings = Findings()
    cast = [contender("a"), contender("b")]
    for turn in turns(PLAN, part(), cast, 20_000, STAGE, findings):
        play(part(), turn, ["broker"])
    assert [(failure.contender, failure.case, failure.why) for failure in findings.failures] == [
        ("b", "500 devices", "it hangs"),
        ("b", "10,000 devices", "it hangs"),
    ]
    # What it had found before it failed is kept.
    assert [sample.contender for sample in findings.samples].count("b") == 2
    assert [sample.contender for sample in findings.samples].count("a") == 4


def test_samples_of_a_part_that_is_not_selected_are_discarded() -> None:
    findings = Findings()
    play(part(), next(turns(PLAN, part(), [contender("a")], 20_000, STAGE, findings)), ["memory"])
    assert findings.samples == []


def test_a_plan_can_be_narrowed_to_some_parts_and_another_number_of_rounds() -> None:
    assert chosen(FULL, ("storm",), 0).rounds == {"storm": FULL.rounds["storm"]}
    assert chosen(QUICK, ("growth", "idle"), 5).rounds == {"growth": 5, "idle": 5}
    assert chosen(QUICK, (), 0).rounds == QUICK.rounds


def test_idle_devices_are_watched_until_their_pings_have_come_round() -> None:
    assert chosen(QUICK, ("idle",), 1).rest_s == FULL.rest_s > PING_PERIOD_S
    assert chosen(QUICK, ("memory",), 1).rest_s == QUICK.rest_s


def test_the_full_plan_has_every_part() -> None:
    assert set(FULL.rounds) == set(TITLES)


def test_a_contender_that_cannot_run_here_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise Unavailable("there is no such language")

    monkeypatch.setattr("bench.harness.GATEWAYS", [contender("ours")])
    monkeypatch.setattr("bench.harness.ALL", [contender("theirs", refuse), contender("others")])
    findings = Findings()
    assert [one.name for one in able([], findings)] == ["ours", "others"]
    assert findings.notes == ["skipped: theirs: there is no such language"]
    assert findings.first == "ours"


def test_table_document_and_plot_are_written(tmp_path: Path) -> None:
    write(Findings(), tmp_path / "new" / "folder")
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"bench.txt", "bench.json", "bench.svg"}


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--part", "broker,speed"], "no part is called speed"),
        (["--contender", "nobody"], "no contender is called nobody"),
    ],
)
def test_what_does_not_exist_is_a_usage_error(arguments: list[str], wanted: str) -> None:
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 2
    assert wanted in found.output
