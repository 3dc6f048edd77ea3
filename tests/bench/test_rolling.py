"""The rolling restart: that it would see what it is there to see. ``make rolling`` runs it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.rolling import Outcome, Plan, Restart, report, violations
from bench.rolling_logs import Handshakes, warnings
from cocoa_tornado.rules.departure import ADMITTED_PER_S


def restart() -> Restart:
    """One in which all went well."""
    away = {"count": 5, "p50": 400, "p99": 900, "p999": 900, "max": 900}
    return Restart("server-0", 0, 1.0, 2.0, 3.0, away, 0, {}, {}, (ADMITTED_PER_S, 50))


def outcome() -> Outcome:
    """Likewise."""
    return Outcome([restart()], sent=9, received=9, connected_at_end=Plan().devices)


def test_where_all_is_well_there_is_no_violation() -> None:
    assert violations(Plan(), outcome()) == []


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"received": 7}, "messages lost: 2"),
        ({"doubled": 1}, "messages twice: 1"),
        ({"unordered": 1}, "messages out of order: 1"),
        ({"gaps": 1}, "gap notices: 1"),
        ({"strays": 1}, "messages at a wrong device: 1"),
        ({"connected_at_end": Plan().devices - 1}, "devices not connected at the end: 1"),
        ({"complaints": ["Traceback"]}, "errors in the servers' logs: 1"),
        ({"restarts": []}, "nothing happened"),
    ],
)
def test_each_fault_is_a_violation(fault: dict[str, object], named: str) -> None:
    assert violations(Plan(), replace(outcome(), **fault)) == [named]  # type: ignore[arg-type]  # fields of it


def test_without_a_mailbox_messages_may_be_lost_and_are_counted() -> None:
    few = replace(outcome(), received=7)
    assert violations(Plan(mailbox="none"), few) == []
    assert "lost 2," in "".join(report(Plan(mailbox="none"), few))


def test_in_an_update_canaries_must_arrive_and_none_may_be_lost() -> None:
    plan, arrived = Plan(update=True), {"cocoa_canary_seconds_count": 9}
    assert violations(plan, outcome()) == ["no canary message arrived"]
    assert violations(plan, replace(outcome(), canaries=arrived)) == []
    lost = replace(outcome(), canaries=arrived | {"cocoa_canary_lost_total": 1})
    assert violations(plan, lost) == ["cocoa_canary_lost_total: 1"]


def test_a_server_that_did_not_drain_is_a_violation() -> None:
    killed = replace(outcome(), restarts=[replace(restart(), status=None, unnoticed=3)])
    assert violations(Plan(), killed) == [
        "servers that did not drain: 1",
        "connections that ended without a notice: 3",
    ]


def test_a_server_may_be_sent_twice_its_share_and_no_more() -> None:
    most = 2 * ADMITTED_PER_S
    assert violations(Plan(), replace(outcome(), restarts=[replace(restart(), sent=(most, 150))])) == []
    flooded = replace(outcome(), restarts=[replace(restart(), sent=(most + 1, 150))])
    assert violations(Plan(), flooded) == [f"handshakes of one server in a second: {most + 1}, of {most} at most"]


def test_what_each_worker_answers_counts_where_they_share_a_port() -> None:
    shared = replace(restart(), sent=(3 * ADMITTED_PER_S, 500), answered=(ADMITTED_PER_S, 100))
    assert violations(Plan(restart="workers"), replace(outcome(), restarts=[shared])) == []
    flooded = replace(shared, answered=(2 * ADMITTED_PER_S + 1, 100))
    assert len(violations(Plan(restart="workers"), replace(outcome(), restarts=[flooded]))) == 1


def test_handshakes_are_counted_for_each_worker_between_two_times(tmp_path: Path) -> None:
    folder = tmp_path / "server-0-1"
    folder.mkdir()
    entries = [(0, "s/1", 101), (100, "s/1", 101), (150, "s/2", 101), (990, "s/1", 503), (1000, "s/1", 101)]
    lines = [
        json.dumps(
            {"timestamp": f"2026-01-01T00:00:0{ms / 1000:.3f}Z", "level": "info", "event": "request", "path": "/ws"}
            | {"status": status, "worker": worker, "outcome": "draining"},
            separators=(",", ":"),
        )
        for ms, worker, status in entries
    ]
    lines += ['{"level":"warning","event":"presence frozen"}', "no JSON"]
    (folder / "log").write_text("\n".join(lines))
    since = 1_767_225_600.0
    found = Handshakes.read([folder / "log"])
    assert found.busiest(since, since + 9, 1.0) == 3
    assert found.busiest(since, since + 9, 0.1) == 2
    assert found.busiest(since, since + 0.5, 1.0) == 2
    assert found.refusals(since, since + 9) == {"503 draining": 1}
    assert warnings([folder / "log"]) == {"presence frozen": 1}
