"""The run over several servers: that it would see what it is there to see, and a short run of it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from bench.contenders import Unavailable
from bench.servers import Outcome, Plan, Published, main, violations
from bench.servers_faults import FAULTS, Faults
from bench.servers_history import History, Verdict
from bench.servers_steady import Steadiness, Usage
from bench.soak import MIB
from bench.survival_fleet import Findings
from testing.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
SECOND = 1_000_000_000


class Told:
    """A history that a test makes up. Times are in seconds."""

    def __init__(self) -> None:
        self.history = History()

    def connect(self, conn: int, called: float, returned: float, status: int, number: int = 0) -> None:
        operation = self.history.begin("doll", "connect", conn, since=int(called * SECOND))
        operation.returned, operation.status = int(returned * SECOND), status
        operation.generation = (1, number) if number else (0, 0)

    def act(self, conn: int, called: float, returned: float) -> None:
        self.history.begin("doll", "act", conn, since=int(called * SECOND)).returned = int(returned * SECOND)

    def end(self, conn: int, called: float, returned: float) -> None:
        self.history.begin("doll", "end", conn, since=int(called * SECOND)).returned = int(returned * SECOND)

    def violations(self) -> list[str]:
        try:
            return self.history.check().violations
        except Unavailable as reason:
            pytest.skip(str(reason))


def handed_over() -> Told:
    """A connection that falls silent, another that takes its place, and a third that is refused."""
    told = Told()
    told.connect(1, 1, 2, 101, number=1)
    told.act(1, 2, 3)
    told.end(1, 2, 9)
    told.connect(2, 4, 6, 101, number=2)
    told.act(2, 5, 7)
    told.connect(3, 6, 8, 409)
    return told


def test_one_holder_after_another_is_as_it_should_be() -> None:
    assert handed_over().violations() == []


def test_a_message_through_a_superseded_connection_is_found() -> None:
    told = handed_over()
    told.act(1, 7, 8)
    assert told.violations() == ["doll"]


def test_two_holders_at_once_are_found() -> None:
    told = Told()
    told.connect(1, 1, 2, 101)
    told.connect(2, 3, 4, 101)
    assert told.violations() == ["doll"]


def test_a_refusal_without_a_holder_is_found() -> None:
    told = handed_over()
    told.end(2, 9, 10)
    told.connect(4, 11, 12, 409)
    assert told.violations() == ["doll"]


def test_a_refusal_after_a_client_that_gave_up_may_be_because_of_it() -> None:
    told = Told()
    told.history.note_given_up("doll")
    now_s = told.history._given_up["doll"][0] / SECOND
    told.connect(1, now_s + 1, now_s + 2, 409)
    assert told.violations() == []
    told.connect(2, now_s + 5, now_s + 6, 409)
    assert told.violations() == ["doll"]


def test_a_generation_that_goes_back_is_found() -> None:
    told = handed_over()
    told.end(2, 9, 10)
    told.connect(4, 11, 12, 101, number=1)
    assert told.violations() == ["doll"]
    published = Published()
    published.seen = [("doll", 1, (1, 7)), ("bear", 1, (1, 9)), ("doll", 2, (1, 8)), ("bear", 2, (1, 8))]
    assert published.note_in(History()) == ["bear"]


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"lost": 1}, "messages lost: 1"),
        ({"copies": 2}, "messages twice: 2"),
        ({"out_of_order": 1}, "messages out of order: 1"),
        ({"wrong_device": 1}, "messages at a wrong device: 1"),
        ({"gap_notices": 1}, "gap notices: 1"),
        ({"refusals": {"400": 1}}, "cursors not known: 1"),
    ],
)
def test_each_fault_is_a_violation(fault: dict[str, object], named: str) -> None:
    good = Outcome(Findings(connects=1), Verdict(1, 1, [], []), dict.fromkeys(FAULTS, 1), accepted=1, generations=1)
    assert violations(Plan(), good) == []
    found = replace(good.findings, **fault)  # type: ignore[arg-type]  # fields of it
    assert named in violations(Plan(), replace(good, findings=found))
    assert violations(Plan(), replace(good, verdict=Verdict(1, 1, ["doll"], []))) == [
        "devices with two holders, or a refusal without one: 1"
    ]
    assert violations(Plan(), replace(good, generations=0)) == ["nothing happened"]
    assert violations(Plan(fault="tail"), good) == ["fault that did not happen: tail"]


def test_every_kind_of_fault_happens_before_one_happens_again(tmp_path: Path) -> None:
    with closing(RedisServer(tmp_path)) as redis:
        faults = Faults([], redis, Random(1), 10.0, FAULTS | {"tail": 1})
    kinds = []
    while faults.missing():
        kinds.append(faults._choose())
        faults.done[kinds[-1]] += 1
    assert kinds == ["tail", *reversed(FAULTS)]
    assert faults._choose() in kinds


def test_the_freeze_fits_the_fence_and_the_mode() -> None:
    assert Plan(fence=10, mode="freeze").freeze == Plan(fence=10, mode="strict").freeze == 5.0
    assert Plan(fence=5).freeze == 2.0
    assert Plan(fence=7, mode="strict").freeze == 2.4


def test_a_fence_that_is_too_short_for_the_mode_is_wrong_usage() -> None:
    result = CliRunner().invoke(main, ["--mode", "strict", "--fence", "6"])
    assert result.exit_code == 2
    assert "--mode strict needs a --fence of at least 6.6" in result.output


def test_memory_and_files_that_grow_after_half_time_are_violations() -> None:
    steady = [Usage(90 * MIB, 40), Usage(100 * MIB, 42), Usage(104 * MIB, 45), Usage(109 * MIB, 50)]
    assert Steadiness({"one": steady}).violations() == []
    grown = [*steady[:3], Usage(112 * MIB, 53)]
    assert Steadiness({"one": grown}).violations() == ["memory of one grows", "open files of one grow"]


def test_the_files_of_connections_do_not_count() -> None:
    metrics = {"process_resident_memory_bytes": 5.0, "process_open_fds": 64.0}
    assert Usage.of(metrics | {"cocoa_connections": 20.0, "cocoa_http_connections": 4.0}) == Usage(5, 40)


@pytest.mark.apache
@pytest.mark.redis
@pytest.mark.usefixtures("redis_server")
def test_a_device_has_one_holder_and_loses_nothing_whatever_happens_to_its_servers() -> None:
    command = [sys.executable, "-m", "bench.servers", "--servers", "3", "--fence", "5"]
    options = ["--devices", "30", "--seconds", "15", "--rate", "50"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost 0, out of order 0, twice 0" in done.stdout
