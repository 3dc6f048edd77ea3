"""Checks of speech: audio yields text, for the speaking device and for no other.

:func:`audio` uploads the recording, and :func:`binary` sends it again as binary messages. Each of the checks in between
judges one aspect of the upload.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Final

from .device import Link
from .judge import judge_audio, quoted
from .judge_speech import (
    Received,
    SpeechResult,
    judge_binary,
    judge_final,
    judge_isolation,
    judge_published,
    judge_speech_messages,
    judge_speech_order,
    judge_words,
)
from .recording import Recording
from .session import DeviceHeldError, Session
from .speaking import Collector, Spoken, collecting, paced, post_speech
from .verdicts import Verdict, failed, judged, passed, skipped
from .wire import Upgrade, json_value

SPEECH_IS_OFF: Final = "speech is off: answered 501"
AUDIO_END: Final = '{"type":"audio_end"}'
SETTLE_FACTOR: Final = 2.0
"""How many times as long as the first a second utterance may take."""


async def audio(session: Session) -> Verdict:
    """Also records the results that the following checks judge."""
    if session.audio is None:
        return skipped("not asked for (--audio FILE.wav)")
    link = await session.hold()
    async with contextlib.AsyncExitStack() as stack:
        mine = await stack.enter_async_context(collecting(link))
        theirs, no_other = await stack.enter_async_context(_second_device(session))
        spoken = await post_speech(session.target, session.device.token, session.audio, session.on_progress)
        if spoken.response.status == 501:
            return skipped(SPEECH_IS_OFF)
        if problem := judge_audio(spoken.response):
            return failed(problem)
        if not spoken.complete:
            return failed("was answered before the audio had ended")
        answer = json_value(spoken.response.body)
        assert isinstance(answer, dict)  # judge_audio has checked it
        await _await_final(session, mine, str(answer["session_id"]))
        await asyncio.sleep(session.limits.quiet_s)
    if mine.lost is not None:
        raise mine.lost
    session.speech = _result_of(session, spoken, answer, mine, theirs, no_other)
    return passed(f'"{quoted(session.speech.text, 60)}", {_ms(spoken.answered_at - spoken.last_byte_at)} after the end')


@contextlib.asynccontextmanager
async def _second_device(session: Session) -> AsyncIterator[tuple[Collector | None, str]]:
    """The collector of a second device; or None, and the reason why there is none."""
    if session.other is None:
        yield None, "needs a second device (--token twice, or --secret)"
        return
    try:
        link = await session.opened(Upgrade(session.other.token))
    except DeviceHeldError:
        yield None, "a live device holds the second id"
        return
    try:
        async with collecting(link) as collector:
            yield collector, ""
    finally:
        await session.close(link)


async def _await_final(session: Session, collector: Collector, session_id: str) -> None:
    """Wait for the final message, within the time limit."""

    def is_there() -> bool:
        return any(item.session_id == session_id and not item.is_hypothesis for item in collector.received)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(session.limits.timeout_s):
            await collector.until(is_there)


def _result_of(
    session: Session,
    spoken: Spoken,
    answer: dict[str, object],
    mine: Collector,
    theirs: Collector | None,
    no_other: str,
) -> SpeechResult:
    return SpeechResult(
        session.device,
        str(answer["session_id"]),
        str(answer["text"]),
        spoken.began_at,
        spoken.last_byte_at,
        spoken.answered_at,
        tuple(mine.received),
        None if theirs is None else tuple(item.message for item in theirs.received),
        no_other,
    )


# --- The results of the upload -------------------------------------------------------------------------------------


async def interim(session: Session) -> Verdict:
    speech = session.speech
    if speech is None or not speech.hypotheses:
        return skipped("none came" if speech else _NO_WORDS)
    number = len(speech.hypotheses)
    first_s = speech.hypotheses[0].at - speech.began_at
    return passed(f"the first after {first_s:.1f} s of speech, {number} in all")


async def message(session: Session) -> Verdict:
    speech = session.speech
    if speech is None:
        return skipped(_NO_WORDS)
    problem = judge_speech_messages(speech)
    if problem is None and speech.results:
        return passed(f"the last {_ms(speech.results[-1].at - speech.last_byte_at)} after the end of the audio")
    return judged(problem)


async def words(session: Session) -> Verdict:
    return _of_the_result(session, judge_words)


async def final(session: Session) -> Verdict:
    speech = session.speech
    if speech is None or not speech.messages:
        return skipped(_NO_WORDS if speech is None else _NO_MESSAGE)
    return judged(judge_final(speech))


async def order(session: Session) -> Verdict:
    return _of_the_result(session, judge_speech_order)


async def published(session: Session) -> Verdict:
    at_once_s = session.limits.at_once_s
    return _of_the_result(session, lambda speech: judge_published(speech, at_once_s))


async def isolation(session: Session) -> Verdict:
    speech = session.speech
    if speech is None:
        return skipped(_NO_WORDS)
    if speech.others is None:
        return skipped(speech.no_other)
    return judged(judge_isolation(speech))


_NO_WORDS: Final = "no words were answered"
_NO_MESSAGE: Final = "no message came"


def _of_the_result(session: Session, judge: Callable[[SpeechResult], str | None]) -> Verdict:
    """Judge the final message, if there is one."""
    speech = session.speech
    if speech is None or not speech.results:
        return skipped(_NO_WORDS if speech is None else _NO_MESSAGE)
    return judged(judge(speech))


# --- Binary messages -----------------------------------------------------------------------------------------------


async def binary(session: Session) -> Verdict:
    """Send the recording again as binary messages. Pauses may split it into several utterances."""
    speech, recording = session.speech, session.audio
    if speech is None or recording is None:
        return skipped(_NO_WORDS)
    link = await session.hold()
    async with collecting(link) as collector, _second_device(session) as (theirs, _):
        await _say(session, link, recording)
        said_at = time.monotonic()
        results = await _results(session, collector, speech)
    if collector.lost is not None:
        raise collector.lost
    if not results:
        return failed("no message came back")
    text = " ".join(item.text for item in results if item.text)
    others = () if theirs is None else tuple(item.message for item in theirs.received)
    if problem := judge_binary(text, speech.text, results) or judge_isolation(replace(speech, others=others)):
        return failed(problem)
    cut = f" in {len(results)} utterances" if len(results) > 1 else ""
    return passed(f'"{quoted(text, 60)}"{cut}, {_ms(max(0.0, results[-1].at - said_at))} after the end')


async def _say(session: Session, link: Link, recording: Recording) -> None:
    async for piece in paced(recording, session.on_progress, time.monotonic()):
        await link.send(piece)
    await link.send(AUDIO_END)


async def _results(session: Session, collector: Collector, speech: SpeechResult) -> Sequence[Received]:
    """The final messages of later utterances than the upload's. Waits until they have as many words as the upload, or
    until none comes for longer than the upload took."""
    patience_s = session.limits.timeout_s + SETTLE_FACTOR * (speech.answered_at - speech.last_byte_at)

    def results() -> list[Received]:
        fresh = [item for item in collector.received if item.session_id != speech.session_id and not item.is_hypothesis]
        return [item for item in fresh if item.fields.get("type") == "transcription"]

    async def another() -> None:
        known = len(results())
        async with asyncio.timeout(patience_s):
            await collector.until(lambda: len(results()) > known)

    with contextlib.suppress(TimeoutError):
        while collector.lost is None and sum(len(item.text.split()) for item in results()) < len(speech.text.split()):
            await another()
    await asyncio.sleep(session.limits.quiet_s)
    return results()


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"
