"""Formats the results of a run as text, JSON or JUnit XML. Pure; the command line adds colours."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from typing import Final

from .judge import compact_json
from .verdicts import Outcome, Report, Status

MARKS: Final = {Status.PASSED: "\u2713", Status.FAILED: "\u2717", Status.SKIPPED: "-"}
PLAIN_MARKS: Final = {Status.PASSED: "ok  ", Status.FAILED: "FAIL", Status.SKIPPED: "skip"}
"""For terminals that can't display the others."""

_NAME_COLUMNS: Final = 17
_TITLE_COLUMNS: Final = 50


def text_line(outcome: Outcome) -> str:
    """One line for a check, without its mark: name, duration, title, detail."""
    time = "" if outcome.status is Status.SKIPPED else duration(outcome.duration_s)
    line = f"{outcome.name:<{_NAME_COLUMNS}} {time:>8}  {outcome.title:<{_TITLE_COLUMNS}}"
    return f"{line}  {outcome.detail}".rstrip()


def summary(report: Report) -> str:
    """The last line: ``25 passed, 1 failed, 3 skipped in 2.1 s``."""
    counts = [f"{report.count(status)} {status.value}" for status in Status]
    others = f" and {', '.join(report.also)}" if report.also else ""
    return f"{', '.join(counts)} in {duration(report.duration_s)}: {report.target}{others}"


def duration(seconds: float) -> str:
    """``12 ms`` or ``3.4 s``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


def json_document(report: Report) -> str:
    """The run as one compact JSON object.

    ``target``, ``started_at`` (RFC 3339), ``duration_s``, ``ok``, ``passed``, ``failed``, ``skipped``, ``also``
    (the URLs of the other servers, if there are any), and ``checks``: a list of ``name``, ``title``, ``status``,
    ``duration_ms`` and ``detail``.
    """
    return compact_json(
        {
            "target": report.target,
            "started_at": _rfc3339(report.started_at),
            "duration_s": round(report.duration_s, 3),
            "ok": report.ok,
            **{status.value: report.count(status) for status in Status},
            **({"also": list(report.also)} if report.also else {}),
            "checks": [
                {
                    "name": outcome.name,
                    "title": outcome.title,
                    "status": outcome.status.value,
                    "duration_ms": round(outcome.duration_s * 1000, 1),
                    "detail": outcome.detail,
                }
                for outcome in report.outcomes
            ],
        }
    )


def junit_document(report: Report) -> str:
    """The run as a JUnit XML file with one test suite."""
    suite = ElementTree.Element(
        "testsuite",
        name="cocoa probe-device",
        tests=str(len(report.outcomes)),
        failures=str(report.count(Status.FAILED)),
        errors="0",
        skipped=str(report.count(Status.SKIPPED)),
        time=f"{report.duration_s:.3f}",
        timestamp=_rfc3339(report.started_at),
    )
    properties = ElementTree.SubElement(suite, "properties")
    ElementTree.SubElement(properties, "property", name="target", value=_xml_text(report.target))
    for url in report.also:
        ElementTree.SubElement(properties, "property", name="also", value=_xml_text(url))
    for outcome in report.outcomes:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname="cocoa.probe",
            name=outcome.name,  # CI servers track a test's history by its name, so it must not contain the title
            time=f"{outcome.duration_s:.3f}",
        )
        if outcome.status is Status.FAILED:
            failure = ElementTree.SubElement(case, "failure", message=_xml_text(outcome.detail), type="contract")
            failure.text = _xml_text(outcome.detail)
        elif outcome.status is Status.SKIPPED:
            ElementTree.SubElement(case, "skipped", message=_xml_text(outcome.detail))
        elif outcome.detail:
            ElementTree.SubElement(case, "system-out").text = _xml_text(outcome.detail)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode")


def _xml_text(text: str) -> str:
    """Replace characters that XML 1.0 cannot represent: most control characters, and surrogates."""
    return "".join(
        char if char in "\t\n\r" or " " <= char <= "\ud7ff" or "\ue000" <= char <= "\ufffd" or char > "\uffff" else "?"
        for char in text
    )


def _rfc3339(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
