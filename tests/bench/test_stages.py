"""Of which stage a sample is, and what a stage costs."""

from __future__ import annotations

from bench.stages import OTHER, parse, stage_of, table, taken


def test_a_sample_belongs_to_the_innermost_function_that_is_of_a_stage() -> None:
    loop = ["run_forever (asyncio/base_events.py:608)", "_run_once (asyncio/base_events.py:1936)"]
    assert stage_of(loop) == "event loop"
    assert stage_of([*loop, "run (cocoa_tornado/web/flusher.py:53)"]) == "route, frame, queue"
    write = ["flush (cocoa_tornado/web/connection.py:290)", "write_at_once (cocoa_tornado/web/sockets.py:51)"]
    assert stage_of([*loop, *write]) == "write"
    assert stage_of(["_run (kafka_reading.py:1)", "somewhere (else.py:1)"]) == OTHER


def test_samples_are_summed_up_by_stage() -> None:
    folded = "main (a.py:1);decode (cocoa_tornado/rules/records.py:5) 3\nmain (a.py:1) 1\n"
    folded += "main (a.py:1);decode (cocoa_tornado/rules/records.py:9) 2\n"
    assert parse(folded) == {"decode": 5, OTHER: 1}


def test_librdkafkas_threads_are_told_apart_from_pythons() -> None:
    before = {(1, "cocoa"): 1.0, (2, "rdk:main"): 0.5}
    after = {(1, "cocoa"): 3.0, (2, "rdk:main"): 0.75, (3, "rdk:broker0"): 1.0, (4, "cocoa-kafka-con"): 0.5}
    assert taken(before, after) == (2.5, {"librdkafka": 1.25})


def test_the_stages_add_up_to_the_whole() -> None:
    lines = table(8.0, {"librdkafka": 2.0}, {"decode": 1, "write": 3})
    assert [line.split()[0] for line in lines] == ["write", "decode", "librdkafka", "all"]
    assert [float(line.split()[-2]) for line in lines] == [6.0, 2.0, 2.0, 10.0]
