"""The soak: ten seconds of it, and that it would see what it is there to see."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.soak import MIB, PATHS, Outcome, is_flat, report, violations
from bench.soak_fleet import Judge, Tally
from testing.kafka_server import KafkaServer

ROOT = Path(__file__).parents[2]
SECONDS = 10


def judged(*messages: tuple[str, int], seen: set[int] | None = None) -> Tally:
    """What the judge of one connection of "doll" says to these messages: the device that each names, its number."""
    tally = Tally()
    judge = Judge("doll", set() if seen is None else seen, tally)
    for device_id, number in messages:
        judge.message(json.dumps({"device_id": device_id, "seq": number}).encode())
    return tally


def outcome(tally: Tally | None = None) -> Outcome:
    """A soak in which all went well."""
    empty = {"cocoa_connections": 0.0, "cocoa_slots_taken": 0.0}
    rss = [50 * MIB, 60 * MIB, 60 * MIB, 60 * MIB]
    return Outcome(tally or Tally(connects=1, delivered=1), accepted=1, rss_bytes=rss, metrics=empty, exit_status=0)


def test_messages_in_order_are_no_fault_wherever_they_begin() -> None:
    assert judged(("doll", 7), ("doll", 8), ("doll", 9)) == Tally(delivered=3)


def test_a_message_for_another_device_is_a_fault() -> None:
    assert judged(("doll", 0), ("bear", 1)).wrong_device == 1


def test_a_message_behind_a_later_one_is_a_fault() -> None:
    assert judged(("doll", 4), ("doll", 3), ("doll", 5)) == Tally(delivered=3, out_of_order=1)


def test_a_message_that_comes_again_is_a_fault_on_another_connection_too() -> None:
    seen: set[int] = set()
    assert judged(("doll", 0), ("doll", 1), ("doll", 1), seen=seen).repeated == 1
    assert judged(("doll", 1), ("doll", 2), seen=seen) == Tally(delivered=2, repeated=1)


def test_a_gap_between_two_messages_of_a_connection_is_a_fault_for_each_that_is_missing() -> None:
    assert judged(("doll", 0), ("doll", 3), ("doll", 4)) == Tally(delivered=3, missing=2)


def test_what_is_still_to_come_is_all_that_is_later_than_the_last_message() -> None:
    judge = Judge("doll", set(), Tally())
    assert judge.still_to_come([3, 4, 5]) == 3
    judge.message(b'{"device_id":"doll","seq":4}')
    assert judge.still_to_come([3, 4, 5]) == 1


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff", b'{"device_id":"doll","seq":null}'])
def test_a_message_that_is_no_record_is_a_fault(text: bytes) -> None:
    tally = Tally()
    Judge("doll", set(), tally).message(text)
    assert tally.unreadable == 1


def test_memory_is_flat_if_it_grows_by_no_more_than_a_tenth_or_five_mebibytes_after_half_time() -> None:
    assert is_flat(40 * MIB, 45 * MIB)
    assert not is_flat(40 * MIB, 45 * MIB + 1)
    assert is_flat(100 * MIB, 110 * MIB)
    assert not is_flat(100 * MIB, 110 * MIB + 1)
    assert is_flat(100 * MIB, 50 * MIB)


def test_where_all_is_well_there_is_no_violation() -> None:
    assert violations(outcome()) == []


@pytest.mark.parametrize(
    "fault",
    ["wrong_device", "unreadable", "out_of_order", "repeated", "missing", "overdue", "two_at_once", "unanswered"],
)
def test_every_fault_of_the_tally_is_a_violation(fault: str) -> None:
    tally = Tally(connects=1, delivered=1)
    setattr(tally, fault, 3)
    [found] = violations(outcome(tally))
    assert found.endswith(": 3")


def test_what_is_left_behind_is_a_violation() -> None:
    left = {"cocoa_connections": 1.0, "cocoa_slots_taken": 2.0}
    assert violations(replace(outcome(), metrics=left)) == ["connections left: 1", "slots left: 2"]


def test_growing_memory_is_a_violation_and_the_report_says_so() -> None:
    grown = replace(outcome(), rss_bytes=[50 * MIB, 60 * MIB, 70 * MIB, 80 * MIB])
    assert violations(grown) == ["memory grows"]
    [line] = [line for line in report(grown) if line.startswith("RSS")]
    assert line.endswith("50.0 at 25 %, 60.0 at 50 %, 70.0 at 75 %, 80.0 at the end: GROWS")


def test_errors_of_the_gateway_or_the_producer_are_violations() -> None:
    failed = replace(outcome(), failed=1, exit_status=None, complaints=["Traceback"])
    assert violations(failed) == [
        "records given up by the producer: 1",
        "errors in the gateway's log: 1",
        "the gateway's exit status: None",
    ]


def test_a_refusal_other_than_409_is_a_violation() -> None:
    tally = Tally(connects=1, delivered=1)
    tally.refusals.update({"409": 5, "500": 1})
    assert violations(outcome(tally)) == ["handshakes answered 500: 1"]


def test_a_soak_in_which_nothing_happened_has_not_passed() -> None:
    assert len(violations(outcome(Tally()))) == 1


@pytest.mark.parametrize("path", PATHS)
def test_thirty_devices_for_ten_seconds_leave_nothing_behind(path: str) -> None:
    assert_all_is_well("--path", path)


@pytest.mark.kafka
@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_nor_do_they_with_kafka_and_either_client(client: str, kafka: KafkaServer) -> None:
    if client == "confluent":
        pytest.importorskip("confluent_kafka")
    assert_all_is_well("--broker", f"kafka://{kafka.bootstrap}", "--kafka-client", client)


def assert_all_is_well(*options: str) -> None:
    command = [sys.executable, "-m", "bench.soak", "--devices", "30", "--seconds", str(SECONDS), "--rate", "200"]
    command += options
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    lines = [line for line in done.stdout.splitlines() if line]
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines[-1].split(maxsplit=1) == ["verdict", "all checks passed"]
    reported = {line[:22].strip(): line[22:] for line in lines}
    assert int(reported["connects"]) > 30
    assert int(reported["messages delivered"]) > 0  # of 2,000; how many is a matter of the machine
    assert reported["slots left"] == "0"


def test_a_wrong_option_is_wrong_usage() -> None:
    command = [sys.executable, "-m", "bench.soak", "--devices", "none"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False).returncode == 2
