"""Checks of speech: audio in, words out, to the device that spoke and to no other.

The recording is uploaded once, by :func:`audio`, and once more as binary messages, by :func:`binary`. The checks in
between say, each for itself, what there is to say of the first.
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
    Arrival,
    Heard,
    judge_binary,
    judge_final,
    judge_published,
    judge_speech_messages,
    judge_speech_order,
    judge_strangers,
    judge_words,
)
from .recording import Recording
from .session import DeviceHeldError, Session
from .speaking import Inbox, Spoken, collecting, paced, post_speech
from .verdicts import Verdict, failed, judged, passed, skipped
from .wire import Upgrade, json_value

SPEECH_IS_OFF: Final = "speech is off: answered 501"
AUDIO_END: Final = '{"type":"audio_end"}'
SETTLE_FACTOR: Final = 2.0
"""A second utterance may take so many times as long as the first, before it is said not to come."""


async def audio(session: Session) -> Verdict:
    """Also notes all that the others judge."""
    if session.audio is None:
        return skipped("not asked for (--audio FILE.wav)")
    link = await session.hold()
    async with contextlib.AsyncExitStack() as stack:
        mine = await stack.enter_async_context(collecting(link))
        theirs, no_stranger = await stack.enter_async_context(_stranger(session))
        spoken = await post_speech(session.target, session.device.token, session.audio, session.on_progress)
        if spoken.response.status == 501:
            return skipped(SPEECH_IS_OFF)
        if problem := judge_audio(spoken.response):
            return failed(problem)
        if not spoken.complete:
            return failed("was answered before the audio had ended")
        answer = json_value(spoken.response.body)
        assert isinstance(answer, dict)  # it has been judged
        await _await_final(session, mine, str(answer["session_id"]))
        await asyncio.sleep(session.limits.quiet_s)
    if mine.lost is not None:
        raise mine.lost
    session.heard = _heard(session, spoken, answer, mine, theirs, no_stranger)
    return passed(f'"{quoted(session.heard.text, 60)}", {_ms(spoken.answered_at - spoken.last_byte_at)} after the end')


@contextlib.asynccontextmanager
async def _stranger(session: Session) -> AsyncIterator[tuple[Inbox | None, str]]:
    """What another device gets meanwhile; or None, and why there is none."""
    if session.other is None:
        yield None, "needs a second device (--token twice, or --secret)"
        return
    try:
        link = await session.opened(Upgrade(session.other.token))
    except DeviceHeldError:
        yield None, "a live device holds the second id"
        return
    try:
        async with collecting(link) as inbox:
            yield inbox, ""
    finally:
        await session.close(link)


async def _await_final(session: Session, inbox: Inbox, session_id: str) -> None:
    """Until it has arrived, or the time is over."""

    def is_there() -> bool:
        return any(item.session_id == session_id and not item.is_hypothesis for item in inbox.arrivals)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(session.limits.timeout_s):
            await inbox.until(is_there)


def _heard(
    session: Session, spoken: Spoken, answer: dict[str, object], mine: Inbox, theirs: Inbox | None, no_stranger: str
) -> Heard:
    return Heard(
        session.device,
        str(answer["session_id"]),
        str(answer["text"]),
        spoken.began_at,
        spoken.last_byte_at,
        spoken.answered_at,
        tuple(mine.arrivals),
        None if theirs is None else tuple(arrival.message for arrival in theirs.arrivals),
        no_stranger,
    )


# --- What became of the upload -------------------------------------------------------------------------------------


async def interim(session: Session) -> Verdict:
    heard = session.heard
    if heard is None or not heard.hypotheses:
        return skipped("none came" if heard else _NOTHING_HEARD)
    number = len(heard.hypotheses)
    first_s = heard.hypotheses[0].at - heard.began_at
    return passed(f"the first after {first_s:.1f} s of speech, {number} in all")


async def message(session: Session) -> Verdict:
    heard = session.heard
    if heard is None:
        return skipped(_NOTHING_HEARD)
    problem = judge_speech_messages(heard)
    if problem is None and heard.results:
        return passed(f"the last {_ms(heard.results[-1].at - heard.last_byte_at)} after the end of the audio")
    return judged(problem)


async def words(session: Session) -> Verdict:
    return _of_the_result(session, judge_words)


async def final(session: Session) -> Verdict:
    heard = session.heard
    if heard is None or not heard.messages:
        return skipped(_NOTHING_HEARD if heard is None else _NO_MESSAGE)
    return judged(judge_final(heard))


async def order(session: Session) -> Verdict:
    return _of_the_result(session, judge_speech_order)


async def published(session: Session) -> Verdict:
    at_once_s = session.limits.at_once_s
    return _of_the_result(session, lambda heard: judge_published(heard, at_once_s))


async def isolation(session: Session) -> Verdict:
    heard = session.heard
    if heard is None:
        return skipped(_NOTHING_HEARD)
    if heard.strangers is None:
        return skipped(heard.no_stranger)
    return judged(judge_strangers(heard))


_NOTHING_HEARD: Final = "no words were answered"
_NO_MESSAGE: Final = "no message came"


def _of_the_result(session: Session, judge: Callable[[Heard], str | None]) -> Verdict:
    """What is to be said of the message with the words, if it came."""
    heard = session.heard
    if heard is None or not heard.results:
        return skipped(_NOTHING_HEARD if heard is None else _NO_MESSAGE)
    return judged(judge(heard))


# --- Binary messages -----------------------------------------------------------------------------------------------


async def binary(session: Session) -> Verdict:
    """The recording once more, as binary messages. Pauses in it may make several utterances of it."""
    heard, recording = session.heard, session.audio
    if heard is None or recording is None:
        return skipped(_NOTHING_HEARD)
    link = await session.hold()
    async with collecting(link) as inbox, _stranger(session) as (theirs, _):
        await _say(session, link, recording)
        said_at = time.monotonic()
        arrived = await _results(session, inbox, heard)
    if inbox.lost is not None:
        raise inbox.lost
    if not arrived:
        return failed("no message came back")
    text = " ".join(arrival.text for arrival in arrived if arrival.text)
    strangers = () if theirs is None else tuple(arrival.message for arrival in theirs.arrivals)
    if problem := judge_binary(text, heard.text, arrived) or judge_strangers(replace(heard, strangers=strangers)):
        return failed(problem)
    cut = f" in {len(arrived)} utterances" if len(arrived) > 1 else ""
    return passed(f'"{quoted(text, 60)}"{cut}, {_ms(max(0.0, arrived[-1].at - said_at))} after the end')


async def _say(session: Session, link: Link, recording: Recording) -> None:
    async for piece in paced(recording, session.on_progress, time.monotonic()):
        await link.send(piece)
    await link.send(AUDIO_END)


async def _results(session: Session, inbox: Inbox, heard: Heard) -> Sequence[Arrival]:
    """The messages of utterances that are not the first one's: until there are as many words as that had, or no more
    come for longer than that took."""
    patience_s = session.limits.timeout_s + SETTLE_FACTOR * (heard.answered_at - heard.last_byte_at)

    def results() -> list[Arrival]:
        fresh = [item for item in inbox.arrivals if item.session_id != heard.session_id and not item.is_hypothesis]
        return [item for item in fresh if item.fields.get("type") == "transcription"]

    async def another() -> None:
        known = len(results())
        async with asyncio.timeout(patience_s):
            await inbox.until(lambda: len(results()) > known)

    with contextlib.suppress(TimeoutError):
        while inbox.lost is None and sum(len(item.text.split()) for item in results()) < len(heard.text.split()):
            await another()
    await asyncio.sleep(session.limits.quiet_s)
    return results()


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"
