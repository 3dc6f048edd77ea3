"""The report: a table that can be read, a document that has everything."""

from __future__ import annotations

import json

from bench.report import EVIDENCE, TITLES, Findings, document, footer, spelled, table, text
from bench.samples import FLOOR, KEY_METRIC, Failure, Sample, Spread


def findings() -> Findings:
    found = Findings(machine={"cores": "2"}, descriptions={"ours": "this project", "theirs": "something else"})
    for turn in range(2):
        found.samples += [
            Sample("broker", "500 devices", FLOOR, "cpu_us", 5.0, turn),
            Sample("broker", "500 devices", "ours", "cpu_us", 10.0 + turn, turn),
            Sample("broker", "500 devices", "ours", "lost", 0.0, turn),
            Sample("broker", "500 devices", "theirs", "cpu_us", 21.0, turn),
            Sample("broker", "500 devices", "theirs", "lost", 3.0, turn),
        ]
    return found


def test_a_value_is_spelled_with_its_range_unless_all_rounds_agree() -> None:
    assert spelled("cpu_us", Spread.of([10.0, 12.0, 11.0])) == "11.0 (10.0-12.0)"
    assert spelled("cpu_us", Spread.of([10.0, 10.0])) == "10.0"
    assert spelled("cpu_us", None) == "-"


def test_what_must_never_happen_is_added_up() -> None:
    assert spelled("lost", Spread.of([0.0, 3.0, 0.0])) == "3"


def test_the_table_has_a_line_for_each_contender() -> None:
    (section,) = findings().sections()
    assert table(section, "ours") == [
        "Broker to device: 500 devices",
        "            CPU us/message  lost  x ours  x floor",
        "  floor                5.0     -    0.48     1.00",
        "  ours    10.5 (10.0-11.0)     0    1.00     2.10",
        "  theirs              21.0     6    2.00     4.20",
    ]


def test_who_did_not_finish_is_named_with_the_reason() -> None:
    found = findings()
    found.failures.append(Failure("storm", "10,000 devices", "theirs", "9,000 are in after 120 s"))
    assert footer(found) == [
        "did not finish: theirs, reconnect storm, 10,000 devices: 9,000 are in after 120 s",
    ]


def test_the_footer_says_whether_the_generator_was_the_limit() -> None:
    found = findings()
    found.evidence = {name: [0.25, 0.75] for name in EVIDENCE}
    lines = footer(found)
    assert len(lines) == len(EVIDENCE)
    assert "generator's core, busy with it, the broker and the harness: 50% of the time, at worst 75%" in lines


def test_a_note_is_made_once() -> None:
    found = findings()
    found.note("the same")
    found.note("the same")
    assert found.notes == ["the same"]


def test_the_document_is_json_with_every_sample_and_the_summary() -> None:
    found = json.loads(json.dumps(document(findings())))
    assert len(found["samples"]) == 10
    (summary,) = found["summary"]
    assert summary["compared_by"] == "cpu_us"
    assert [row["ratio"] for row in summary["rows"]] == [5 / 10.5, 1.0, 2.0]


def test_a_run_without_any_contender_has_a_report_too() -> None:
    empty = Findings(notes=["skipped: everybody"])
    assert text(empty)[-1] == "skipped: everybody"
    assert document(empty)["summary"] == []


def test_every_part_has_a_title() -> None:
    assert set(TITLES) == set(KEY_METRIC)
