"""Of which stage a sample is, and what a stage costs."""

from __future__ import annotations

from bench.stages import NATIVE, OTHER, by_stage, parse, stage_of, table


def test_a_sample_belongs_to_the_innermost_function_that_is_of_a_stage() -> None:
    loop = ["run_forever (asyncio/base_events.py:608)", "_run_once (asyncio/base_events.py:1936)"]
    assert stage_of(loop) == "event loop"
    assert stage_of([*loop, "run (cocoa_tornado/connection/flusher.py:53)"]) == "route, frame, queue"
    assert stage_of(["_poll (kafka/net/selector.py:5)", "select (selectors.py:468)"]) == "Kafka client"
    write = [
        "flush (cocoa_tornado/connection/connection.py:290)",
        "write (cocoa_tornado/connection/device_socket.py:51)",
    ]
    assert stage_of([*loop, *write]) == "write"
    assert stage_of(["_run (kafka_reading.py:1)", "somewhere (else.py:1)"]) == OTHER


def test_samples_are_summed_up_by_thread_and_stage() -> None:
    folded = "thread (7): MainThread;main (a.py:1);decode (cocoa_tornado/rules/records.py:5) 3\n"
    folded += "thread (7): MainThread;main (a.py:1) 1\nthread (8): x;decode (cocoa_tornado/rules/records.py:9) 2\n"
    folded += "thread (8): x;_turn (a.py:1);_let_records_gather (a.py:2) 9\n"
    folded += "thread (9) 1\n"
    assert parse(folded) == {7: {"decode": 3, OTHER: 1}, 8: {"decode": 2}}


def test_each_threads_time_is_shared_out_by_its_own_samples() -> None:
    before = {(1, "cocoa"): 1.0, (2, "rdk:main"): 0.5}
    after = {(1, "cocoa"): 5.0, (2, "rdk:main"): 0.75, (3, "rdk:broker0"): 1.0, (4, "cocoa"): 0.5}
    samples = {1: {"write": 3, "decode": 1}, 4: {"decode": 7}}
    assert by_stage(before, after, samples) == {"write": 3.0, "decode": 1.5, NATIVE: 1.25}


def test_the_stages_add_up_to_the_whole() -> None:
    lines = table({"decode": 2.0, "write": 6.0})
    assert [line.split()[0] for line in lines] == ["write", "decode", "all"]
    assert [float(line.split()[-2]) for line in lines] == [6.0, 2.0, 8.0]
