"""The survival: that it would see what it is there to see, and a short run of it on each mailbox, on Apache Kafka."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.survival import Audiences, Outcome, violations
from bench.survival_fleet import Findings, Memory

ROOT = Path(__file__).parents[2]


def received(*numbers: int) -> tuple[Memory, Findings]:
    memory, findings = Memory("doll"), Findings()
    for number in numbers:
        memory.take(message(number), findings)
    return memory, findings


def message(number: int, key: str = "doll", importance: str = "normal", not_for: Sequence[str] = ()) -> str:
    fields = {"key": key, "importance": importance, "not_for": not_for, "seq": number}
    return json.dumps({"type": "transcription", **fields, "cursor": f"c{number}"})


def good() -> Outcome:
    return Outcome(Findings(received=3, connects=1), kills=6, accepted=3, exit_status=0)


def test_a_device_remembers_the_cursor_of_its_latest_message() -> None:
    memory, findings = received(0, 1, 2)
    assert memory.cursor == "c2"
    assert memory.missing(3) == 0
    assert (findings.copies, findings.out_of_order) == (0, 0)


def test_a_message_that_comes_again_is_a_copy() -> None:
    assert received(0, 1, 1)[1].copies == 1


def test_a_message_behind_a_later_one_is_out_of_order() -> None:
    assert received(0, 2, 1)[1].out_of_order == 1


def test_the_order_is_that_of_one_key_and_one_priority() -> None:
    memory, findings = Memory("doll", ("doll", "kitchen")), Findings()
    for text in (message(1), message(0, "kitchen"), message(0, importance="high"), message(0, "kitchen", "low")):
        memory.take(text, findings)
    assert (findings.out_of_order, findings.copies, findings.wrong_device, memory.missing(4)) == (0, 0, 0, 0)


@pytest.mark.parametrize("stray", [message(0, "hall"), message(0, not_for=["doll"])])
def test_a_message_for_others_is_at_a_wrong_device(stray: str) -> None:
    memory, findings = Memory("doll", ("doll", "kitchen")), Findings()
    memory.take(stray, findings)
    assert findings.wrong_device == 1


def test_the_recipients_of_a_record_are_those_it_addresses() -> None:
    audiences = Audiences([f"d{number}" for number in range(10)])
    chance = random.Random(1)
    for _ in range(300):
        key, address, devices = audiences.draw(chance)
        assert all(key in audiences.keys[device_id] for device_id in devices)
        excluded = address.get("except", {}).get("devices", [])
        others = [device_id for device_id in audiences.users if key in audiences.keys[device_id]]
        assert sorted([*devices, *excluded]) == sorted(others)


def test_a_message_that_never_comes_is_missing() -> None:
    assert received(0, 2)[0].missing(4) == 2


def test_a_run_in_which_all_went_well_has_no_violations() -> None:
    assert violations(good()) == []


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"lost": 1}, "messages lost: 1"),
        ({"copies": 2}, "messages twice: 2"),
        ({"out_of_order": 1}, "messages out of order: 1"),
        ({"wrong_device": 1}, "messages at a wrong device: 1"),
        ({"gap_notices": 1}, "gap notices: 1"),
        ({"refusals": {"400": 1}}, "cursors not known: 1"),
        ({"received": 2}, "2 of 3 messages came"),
    ],
)
def test_each_fault_is_a_violation(fault: dict[str, object], named: str) -> None:
    outcome = good()
    outcome.findings = replace(outcome.findings, **fault)  # type: ignore[arg-type]  # fields of it
    assert named in violations(outcome)


@pytest.mark.apache
@pytest.mark.parametrize("mailbox", ["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def test_nothing_is_lost_or_comes_twice_though_the_gateway_is_killed(
    mailbox: str, request: pytest.FixtureRequest
) -> None:
    if mailbox == "redis":
        request.getfixturevalue("redis_server")  # which knows whether there can be one
    command = [sys.executable, "-m", "bench.survival", "--mailbox", mailbox]
    options = ["--devices", "20", "--messages", "1000", "--kills", "2", "--rate", "100"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost 0, out of order 0, twice 0" in done.stdout
