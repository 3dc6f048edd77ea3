from __future__ import annotations

from cocoa_tornado.rules.readiness_report import Readiness, workers_part, worst

GOOD = {"ok": True, "state": "ready"}
BAD = {"ok": False, "state": "unavailable"}


def test_it_is_ready_if_all_parts_are_and_it_does_not_drain() -> None:
    assert Readiness(False, {"broker": GOOD}).body() == {"status": "ready", "parts": {"broker": GOOD}}
    drains = Readiness(True, {"broker": BAD, "mailbox": GOOD}).body()
    assert drains == {
        "message": "not ready: draining, broker",
        "status": "unavailable",
        "parts": {"broker": BAD, "mailbox": GOOD},
    }


def test_a_failing_quarantine_keeps_nothing_from_being_delivered() -> None:
    assert Readiness(False, {"quarantine": BAD}).failing == []


def test_of_several_servers_each_part_has_the_worst_entry() -> None:
    first = Readiness(False, {"broker": GOOD, "mailbox": BAD})
    second = Readiness(True, {"broker": BAD, "mailbox": BAD | {"state": "opening"}})
    assert worst([first, second]) == Readiness(True, {"broker": BAD, "mailbox": BAD})
    assert worst([first]) == first


def test_missing_workers_are_named() -> None:
    assert workers_part([]) == GOOD
    part = workers_part(["host:8080/2"])
    assert part == {"ok": False, "state": "missing", "missing": ["host:8080/2"]}
    assert Readiness(False, {"workers": part}).body()["message"] == "not ready: workers"
