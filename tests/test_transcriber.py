"""The transcriber: utterances, their limits, and the records that come of them, over a scripted engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.counters import SpeechCounters
from cocoa_tornado.errors import (
    AudioNotDecodable,
    AudioTooLong,
    BrokerError,
    EngineFailed,
    SpeechBusy,
    SpeechError,
)
from cocoa_tornado.routing.round_trips import RoundTrips
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.rules.records import decode
from cocoa_tornado.speech.port import SpeechState
from cocoa_tornado.transcriber import SpeechLimits, Transcriber, Utterance
from testing.waiting import eventually

from .scripted_engine import ScriptedEngine

TOPIC = "transcription.results"
RAW = AudioFormat()
NOON = 1_705_314_600.25


class SlowBroker(MemoryBroker):
    """Acknowledges on demand.

    :ivar held: what was published and is not acknowledged, oldest first
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[dict[str, Any], asyncio.Future[None]]] = []
        self.holds = False
        self.refuses = False
        self.has_room = True

    def can_write(self) -> bool:
        return self.has_room

    async def writable(self) -> None:
        while not self.has_room:
            await asyncio.sleep(0.001)

    def publish(self, topic: str, key: str, value: bytes, headers: Any = None) -> asyncio.Future[None]:
        if self.refuses:
            raise BrokerError("refused on purpose")
        if not self.holds:
            return super().publish(topic, key, value, headers)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.held.append((json.loads(value), future))
        return future

    @property
    def texts(self) -> list[str]:
        return [record["text"] for record, _ in self.held]

    async def acknowledge(self) -> None:
        for _, future in self.held:
            if not future.done():
                future.set_result(None)
        await asyncio.sleep(0)


class Bench:
    """A transcriber, and everything around it."""

    def __init__(self, limits: SpeechLimits | None = None) -> None:
        self.engine, self.broker, self.counters = ScriptedEngine(), SlowBroker(), SpeechCounters()
        self.batches: list[Batch] = []
        self.now, self.limits = 100.0, limits or SpeechLimits()
        self.round_trips = RoundTrips(lambda: self.now)
        self.broker.start(self._route, decode)
        self.transcriber = Transcriber(
            self.engine,
            self.broker,
            self.round_trips,
            self.counters,
            lambda: self.limits,
            results_topic=TOPIC,
            clock=lambda: self.now,
            wall_clock=lambda: NOON,
        )

    def _route(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.round_trips.routed(batch.records)

    def open(self, device_id: str = "doll", **options: Any) -> Utterance:
        return self.transcriber.open(device_id, 99, RAW, **options)

    def values(self) -> list[bytes]:
        return [record.value or b"" for record in self.broker.records(TOPIC)]

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(value) for value in self.values()]


@pytest.mark.gen_test
async def test_the_words_are_one_compact_record_keyed_by_the_device() -> None:
    bench = Bench()
    utterance = bench.open()
    await utterance.feed(b"go ")
    await utterance.feed(b"forward")
    transcript = await utterance.finish()
    assert transcript.text == "go forward"
    (record,) = bench.broker.records(TOPIC)
    assert record.key == b"doll"
    assert (
        record.value
        == (
            f'{{"session_id":"{utterance.session_id}","user_id":99,"device_id":"doll","text":"go forward",'
            '"timestamp":"2024-01-15T10:30:00.250Z","success":true}'
        ).encode()
    )
    assert len(utterance.session_id) == 32
    assert int(utterance.session_id, 16) >= 0


@pytest.mark.gen_test
async def test_each_utterance_has_a_session_of_its_own() -> None:
    bench = Bench(SpeechLimits(streams_per_device=50))
    assert len({bench.open().session_id for _ in range(50)}) == 50


@pytest.mark.gen_test
async def test_no_speech_is_a_success_without_text_and_published_too() -> None:
    bench = Bench()
    utterance = bench.open()
    await utterance.feed(b"   ")
    assert (await utterance.finish()).text == ""
    assert [(record["text"], record["success"]) for record in bench.records()] == [("", True)]
    assert bench.counters.streams == {"no_speech": 1}


@pytest.mark.gen_test
async def test_an_utterance_without_audio_needs_no_worker() -> None:
    bench = Bench()
    bench.engine.answers.clear()
    assert (await bench.open().finish()).text == ""
    assert bench.engine.stream.cancelled
    assert [record["text"] for record in bench.records()] == [""]


@pytest.mark.gen_test
async def test_finish_returns_only_when_the_broker_has_acknowledged() -> None:
    bench = Bench()
    bench.broker.holds = True
    utterance = bench.open()
    await utterance.feed(b"words")
    finishing = asyncio.ensure_future(utterance.finish())
    await eventually(lambda: len(bench.broker.held) == 1)
    assert not finishing.done()
    assert len(bench.transcriber) == 1
    await bench.broker.acknowledge()
    assert (await finishing).text == "words"
    assert len(bench.transcriber) == 0


# Hypotheses


@pytest.mark.gen_test
async def test_interims_grow_and_end_with_the_final_text() -> None:
    bench = Bench()
    utterance = bench.open(interim=True)
    for number, piece in enumerate((b"go", b" forward", b" ten"), start=1):
        await utterance.feed(piece)
        await eventually(lambda number=number: len(bench.records()) == number)  # type: ignore[misc]  # cannot infer it
    await utterance.finish()
    records = bench.records()
    assert [(record["text"], record["final"]) for record in records] == [
        ("go", False),
        ("go forward", False),
        ("go forward ten", False),
        ("go forward ten", True),
    ]
    assert {record["session_id"] for record in records} == {utterance.session_id}
    assert bench.counters.interims == 3
    assert bench.values()[0].endswith(b'"final":false,"success":true}')


@pytest.mark.gen_test
async def test_interims_are_requested_from_the_engine_only_if_wanted() -> None:
    bench = Bench()
    bench.open()
    assert bench.engine.stream.on_interim is None


@pytest.mark.gen_test
async def test_one_interim_is_in_flight_and_the_newest_waits() -> None:
    bench = Bench()
    bench.broker.holds = True
    utterance = bench.open(interim=True)
    for piece in (b"a", b"b", b"c", b"d"):
        await utterance.feed(piece)
    assert bench.broker.texts == ["a"]
    await bench.broker.acknowledge()
    assert bench.broker.texts == ["a", "abcd"]
    await utterance.feed(b"e")
    finishing = asyncio.ensure_future(utterance.finish())
    await eventually(lambda: len(bench.broker.held) == 3)
    await bench.broker.acknowledge()
    await finishing
    assert [(record["text"], record["final"]) for record, _ in bench.broker.held] == [
        ("a", False),
        ("abcd", False),
        ("abcde", True),
    ]


@pytest.mark.gen_test
async def test_an_interim_does_not_wait_for_a_full_broker() -> None:
    bench = Bench()
    bench.broker.has_room = False
    utterance = bench.open(interim=True)
    await utterance.feed(b"a")
    bench.broker.has_room = True
    await utterance.feed(b"b")
    await asyncio.sleep(0)
    assert [record["text"] for record in bench.records()] == ["ab"]


@pytest.mark.gen_test
async def test_no_interim_comes_after_the_end(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    finished, cancelled = bench.open("a", interim=True), bench.open("b", interim=True)
    await finished.finish()
    cancelled.cancel()
    for stream in bench.engine.streams:
        assert stream.on_interim is not None
        stream.on_interim("too late")
    assert [record["text"] for record in bench.records()] == [""]


# Limits


@pytest.mark.gen_test
async def test_a_device_has_so_many_streams_and_no_more() -> None:
    bench = Bench(SpeechLimits(streams_per_device=2))
    first, _ = bench.open(), bench.open()
    with pytest.raises(SpeechBusy):
        bench.open()
    bench.open("other")
    first.cancel()
    bench.open()
    assert len(bench.transcriber) == 3
    assert bench.counters.streams == {"busy": 1, "vanished": 1}
    assert bench.records() == []


@pytest.mark.gen_test
async def test_there_are_so_many_streams_in_all() -> None:
    bench = Bench(SpeechLimits(streams=2))
    bench.open("a")
    bench.open("b")
    with pytest.raises(SpeechBusy):
        bench.open("c")
    bench.limits = SpeechLimits(streams=3)
    bench.open("c")


@pytest.mark.gen_test
async def test_a_full_queue_leaves_nothing_behind() -> None:
    bench = Bench()
    bench.engine.is_busy = True
    with pytest.raises(SpeechBusy) as caught:
        bench.open()
    assert caught.value.retry_after_s == 7.2
    bench.engine.is_busy = False
    bench.open()
    assert bench.counters.streams == {"busy": 1}


@pytest.mark.gen_test
async def test_the_longest_audio_is_the_engines_to_judge() -> None:
    bench = Bench(SpeechLimits(max_audio_s=12.5))
    bench.open()
    assert bench.engine.stream.max_audio_s == 12.5


# Failures


@pytest.mark.logs("cocoa.transcriber", "audio stream failed")
@pytest.mark.parametrize("when", ["feed", "finish"])
@pytest.mark.gen_test
async def test_a_failed_engine_is_reported_to_the_device_and_raised(when: str) -> None:
    bench = Bench()
    utterance = bench.open()
    await utterance.feed(b"words")
    bench.engine.stream.fail(EngineFailed("a worker crashed"))
    with pytest.raises(EngineFailed):
        await (utterance.feed(b"more") if when == "feed" else utterance.finish())
    assert bench.values() == [
        f'{{"session_id":"{utterance.session_id}","user_id":99,"device_id":"doll","text":"",'
        '"timestamp":"2024-01-15T10:30:00.250Z","success":false,"error":"speech recognition failed"}'.encode()
    ]
    assert (len(bench.transcriber), bench.counters.streams) == (0, {"failed": 1})
    assert bench.engine.stream.cancelled


@pytest.mark.parametrize(
    ("error", "outcome", "text"),
    [
        (AudioNotDecodable("no RIFF"), "not_decodable", "audio not decodable"),
        (AudioTooLong("61 s"), "too_long", "audio too long"),
    ],
)
@pytest.mark.gen_test
async def test_undecodable_audio_is_reported_to_the_device_only_without_an_http_status(
    error: SpeechError, outcome: str, text: str
) -> None:
    bench = Bench()
    cases: tuple[tuple[dict[str, Any], list[tuple[str, bool, bool | None]]], ...] = (
        ({}, []),
        ({"reports_errors": True}, [("", False, None)]),
        ({"interim": True}, [("words", True, False), ("", False, True)]),
    )
    for options, records in cases:
        before = len(bench.records())
        utterance = bench.open(**options)
        await utterance.feed(b"words")
        bench.engine.stream.fail(error)
        with pytest.raises(type(error)):
            await utterance.finish()
        new = bench.records()[before:]
        assert [(record["text"], record["success"], record.get("final")) for record in new] == records
        assert {record["error"] for record in new if not record["success"]} <= {text}
    assert bench.counters.streams == {outcome: 3}


@pytest.mark.logs("cocoa.transcriber", "transcript not published")
@pytest.mark.gen_test
async def test_words_that_the_broker_refuses_are_raised_counted_and_logged() -> None:
    bench = Bench()
    utterance = bench.open()
    await utterance.feed(b"words")
    bench.broker.refuses = True
    with pytest.raises(BrokerError):
        await utterance.finish()
    assert (len(bench.transcriber), len(bench.round_trips), bench.counters.streams) == (0, 0, {"unpublished": 1})


@pytest.mark.logs("cocoa.transcriber", "transcript not published")
@pytest.mark.gen_test
async def test_a_broker_that_never_acknowledges_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoa_tornado.transcriber.PUBLISH_WAIT_S", 0.02)
    bench = Bench()
    bench.broker.holds = True
    with pytest.raises(BrokerError, match="not acknowledged"):
        await bench.open().finish()
    bench.broker.has_room = False
    with pytest.raises(BrokerError, match="not acknowledged"):
        await bench.open().finish()
    assert len(bench.transcriber) == 0


@pytest.mark.logs("cocoa.transcriber", "audio stream failed|transcript not published")
@pytest.mark.gen_test
async def test_a_failed_engine_without_a_broker_is_still_a_failed_engine() -> None:
    bench = Bench()
    utterance = bench.open()
    bench.broker.refuses = True
    bench.engine.stream.fail(EngineFailed("crashed"))
    with pytest.raises(EngineFailed):
        await utterance.feed(b"words")
    assert len(bench.transcriber) == 0


@pytest.mark.gen_test
async def test_an_engine_that_cannot_start_is_reported_at_once() -> None:
    bench = Bench()
    bench.engine.state = SpeechState.FAILED
    with pytest.raises(EngineFailed):
        bench.open()
    assert [record["error"] for record in bench.records()] == ["speech recognition failed"]
    assert len(bench.transcriber) == 0


@pytest.mark.gen_test
async def test_a_report_needs_no_answer_and_no_broker() -> None:
    bench = Bench()
    bench.transcriber.report("doll", "u1", "speech recognition is busy")
    bench.broker.refuses = True
    bench.transcriber.report("doll", "u1", "lost")
    bench.broker.has_room = False
    bench.transcriber.report("doll", "u1", "lost")
    (record,) = bench.records()
    assert (record["user_id"], record["success"], record["error"]) == ("u1", False, "speech recognition is busy")


# The end of waiting


@pytest.mark.gen_test
async def test_a_cancelled_utterance_publishes_nothing_and_frees_everything() -> None:
    bench = Bench()
    utterance = bench.open()
    await utterance.feed(b"words")
    utterance.cancel("timeout")
    utterance.cancel()
    assert bench.engine.stream.cancelled
    assert (len(bench.transcriber), bench.records(), bench.counters.streams) == (0, [], {"timeout": 1})


@pytest.mark.gen_test
async def test_to_cancel_the_waiting_for_words_cancels_the_utterance() -> None:
    bench = Bench()
    bench.engine.answers.clear()
    utterance = bench.open()
    await utterance.feed(b"words")
    waiting = asyncio.ensure_future(utterance.finish())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert bench.engine.stream.cancelled
    assert len(bench.transcriber) == 0


@pytest.mark.gen_test
async def test_an_utterance_counts_its_audio_its_waiting_and_its_work() -> None:
    bench = Bench()
    utterance = bench.open()
    await utterance.feed(b"ten bytes.")
    bench.now = 101.0
    finishing = asyncio.ensure_future(utterance.finish())
    await asyncio.sleep(0)
    bench.now = 101.5
    await finishing
    await eventually(lambda: not len(bench.round_trips))
    counters = bench.counters
    assert (counters.streams, counters.audio_s) == ({"transcribed": 1}, 1.0)
    assert counters.queue.total == 0.25
    assert counters.real_time_factor.total == 0.1
    assert counters.delivery.total == 0.5


# Draining


@pytest.mark.gen_test
async def test_a_drain_waits_for_the_words_and_for_their_way_back() -> None:
    bench = Bench()
    bench.engine.answers.clear()
    utterance = bench.open()
    await utterance.feed(b"last words")
    finishing = asyncio.ensure_future(utterance.finish())
    draining = asyncio.ensure_future(bench.transcriber.drain(5.0))
    await asyncio.sleep(0)
    with pytest.raises(SpeechBusy):
        bench.open("late")
    bench.engine.answers.set()
    assert (await finishing).text == "last words"
    await draining
    assert bench.engine.state is SpeechState.CLOSED
    assert [record.address for batch in bench.batches for record in batch.records] == ["doll"]


@pytest.mark.logs("cocoa.transcriber", "audio streams cut off")
@pytest.mark.gen_test
async def test_a_drain_cuts_off_what_does_not_end() -> None:
    bench = Bench()
    bench.engine.answers.clear()
    cut: list[str] = []
    talking = bench.open("a", on_cut=lambda: cut.append("a"))
    await talking.feed(b"and so on")
    waiting = bench.open("b", on_cut=lambda: cut.append("b"))
    await waiting.feed(b"and so on")
    finishing = asyncio.ensure_future(waiting.finish())
    await bench.transcriber.drain(0.01)
    assert sorted(cut) == ["a", "b"]
    for attempt in (finishing, talking.feed(b"more")):
        with pytest.raises(EngineFailed):
            await attempt
    assert (bench.records(), bench.counters.streams) == ([], {"drained": 2})


@pytest.mark.gen_test
async def test_a_silent_stream_yields_to_a_new_one_of_its_device_and_no_other_does() -> None:
    bench = Bench()
    yielded: list[str] = []
    old = bench.open(on_yield=lambda: yielded.append("old"))
    await old.feed(b"go")
    bench.now += 1.5
    with pytest.raises(SpeechBusy) as busy:
        bench.open()
    assert busy.value.retry_after_s == 0.5
    await old.feed(b" on")
    bench.now += 1.9
    with pytest.raises(SpeechBusy):
        bench.open()
    bench.open("bear").cancel()
    assert yielded == []
    bench.now += 0.1
    new = bench.open(on_yield=lambda: yielded.append("new"))
    assert yielded == ["old"]
    # The utterance continues to its end, without a slot.
    assert (await old.finish()).text == "go on"
    bench.now += 2.0
    bench.open().cancel()
    assert yielded == ["old", "new"]
    new.cancel("replaced")
    assert len(bench.transcriber) == 0


@pytest.mark.gen_test
async def test_a_stream_that_is_not_expected_to_send_never_yields() -> None:
    bench = Bench()
    held_back = bench.open(on_yield=lambda: pytest.fail("yielded"))
    bench.engine.takes.clear()
    feeding = asyncio.ensure_future(held_back.feed(b"go"))
    await asyncio.sleep(0)
    bench.now += 60.0
    with pytest.raises(SpeechBusy):
        bench.open()
    bench.engine.takes.set()
    await feeding
    bench.engine.answers.clear()
    finishing = asyncio.ensure_future(held_back.finish())
    await asyncio.sleep(0)
    bench.now += 60.0
    with pytest.raises(SpeechBusy):
        bench.open()
    bench.engine.answers.set()
    assert (await finishing).text == "go"


@pytest.mark.gen_test
async def test_no_stream_yields_to_one_that_is_refused_anyway() -> None:
    bench = Bench(SpeechLimits(streams_per_device=2, streams=2))
    streams = [bench.open(name, on_yield=lambda: pytest.fail("yielded")) for name in ("doll", "bear")]
    bench.now += 60.0
    with pytest.raises(SpeechBusy):
        bench.open("doll")
    for stream in streams:
        stream.cancel()
