"""A run as text, JSON and JUnit XML."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.probe.report import duration, json_document, junit_document, summary, text_line
from cocoa_tornado.probe.verdicts import Outcome, Report, Status

PASSED = Outcome("ping", "a ping is answered by its pong", Status.PASSED, "after 3 ms", 0.0031)
FAILED = Outcome("no-token", "no token is answered 401", Status.FAILED, 'answered 200 <"&\x00>', 1.5)
SKIPPED = Outcome("expired", "an expired token is answered 401", Status.SKIPPED, "no key", 0.0)
REPORT = Report("ws://host/ws", 1767323045.0, 2.25, (PASSED, FAILED, SKIPPED))


def test_lines_stand_in_columns() -> None:
    lines = [text_line(outcome) for outcome in REPORT.outcomes]

    assert lines[0] == "ping                  3 ms  a ping is answered by its pong                      after 3 ms"
    assert len({line.index(outcome.title) for line, outcome in zip(lines, REPORT.outcomes, strict=True)}) == 1
    assert len({line.index(outcome.detail) for line, outcome in zip(lines, REPORT.outcomes, strict=True)}) == 1


def test_a_check_that_was_not_made_has_no_time() -> None:
    assert " ms" not in text_line(SKIPPED)


def test_the_summary_counts() -> None:
    assert summary(REPORT) == "1 passed, 1 failed, 1 skipped in 2.2 s: ws://host/ws"
    assert not REPORT.ok
    assert Report("", 0, 0, (PASSED, SKIPPED)).ok


def test_durations_have_a_fitting_unit() -> None:
    assert [duration(seconds) for seconds in (0.0004, 0.9994, 0.9996, 61.04)] == ["0 ms", "999 ms", "1.0 s", "61.0 s"]


def test_the_json_document_is_one_compact_object() -> None:
    text = json_document(REPORT)
    document = json.loads(text)

    assert text == json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    assert document["started_at"] == "2026-01-02T03:04:05Z"
    assert (document["ok"], document["passed"], document["failed"], document["skipped"]) == (False, 1, 1, 1)
    assert document["checks"][1] == {
        "name": "no-token",
        "title": "no token is answered 401",
        "status": "failed",
        "duration_ms": 1500.0,
        "detail": 'answered 200 <"&\x00>',
    }


def test_the_junit_document_is_read_by_an_xml_parser() -> None:
    root = ElementTree.fromstring(junit_document(REPORT).encode())
    suite = root.find("testsuite")
    assert suite is not None
    cases = suite.findall("testcase")

    assert root.tag == "testsuites"
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "errors": "0",
        "skipped": "1",
    }
    assert [[child.tag for child in case] for case in cases] == [["system-out"], ["failure"], ["skipped"]]
    assert [case.get("name") for case in cases] == [outcome.name for outcome in REPORT.outcomes]
    assert cases[1][0].get("message") == 'answered 200 <"&?>'
    assert next(iter(suite.iter("property"))).get("value") == "ws://host/ws"


@given(st.text())
def test_any_detail_makes_valid_documents(detail: str) -> None:
    report = Report("ws://host/ws", 0, 0, (Outcome("a", "b", Status.FAILED, detail, 0),))

    ElementTree.fromstring(junit_document(report).encode())
    assert json.loads(json_document(report))["checks"][0]["detail"] == detail
