"""Every check of speech passes where the contract is kept, and fails against a gateway that breaks just that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from cocoa_tornado.probe import run as run_module
from cocoa_tornado.probe.recording import parse_wav
from cocoa_tornado.probe.run import AUDIO_CHECKS, CHECKS, run
from cocoa_tornado.probe.verdicts import Outcome, Status

from .broken_gateways import BrokenGateway
from .broken_speech import HYPOTHESES, WORDS, SpeechFault
from .recordings import wav
from .test_checks import QUICK, given, session_for

RECORDING = parse_wav(wav())
ABOUT_SPEECH = [check for check in CHECKS if check.name == "audio"] + list(AUDIO_CHECKS)
NAMES = {check.name for check in ABOUT_SPEECH}

BREAKS: list[tuple[SpeechFault, set[str]]] = [
    (SpeechFault.ENGINE_FAILS, {"audio"}),
    (SpeechFault.NO_WORDS, {"audio"}),
    (SpeechFault.ANSWER_HAS_BLANKS, {"audio"}),
    (SpeechFault.TOO_LARGE_AT_ONCE, {"audio"}),
    (SpeechFault.ANSWERED_BEFORE_THE_END, {"audio"}),
    (SpeechFault.CUT_WITHOUT_ANSWER, {"audio"}),
    (SpeechFault.ANSWERED_WITHOUT_PUBLISHING, {"audio-message"}),
    (SpeechFault.MESSAGE_HAS_BLANKS, {"audio-message"}),
    (SpeechFault.MESSAGE_FOR_ANOTHER_USER, {"audio-message"}),
    (SpeechFault.OTHER_SESSION_ID, {"audio-message"}),
    (SpeechFault.WORDS_OF_ANOTHER_STREAM, {"audio-words"}),
    (SpeechFault.NO_FINAL, {"audio-final"}),
    (SpeechFault.FINAL_NOT_MARKED, {"audio-final"}),
    (SpeechFault.TWO_FINALS, {"audio-final"}),
    (SpeechFault.INTERIM_AFTER_FINAL, {"audio-order"}),
    (SpeechFault.FINAL_BEFORE_THE_END, {"audio-order"}),
    (SpeechFault.ANSWERED_BEFORE_PUBLISHING, {"audio-published"}),
    (SpeechFault.TRANSCRIPT_TO_A_STRANGER, {"audio-isolation"}),
    (SpeechFault.BINARY_IGNORED, {"audio-binary"}),
    (SpeechFault.BINARY_OF_ANOTHER_STREAM, {"audio-binary"}),
    (SpeechFault.BINARY_TO_A_STRANGER, {"audio-binary"}),
    (SpeechFault.BINARY_FAILS, {"audio-binary"}),
]


async def audio_outcomes(
    speech: Sequence[SpeechFault] | None, **fields: object
) -> tuple[dict[str, Outcome], BrokenGateway]:
    """The outcomes of the checks of speech alone."""
    gateway = BrokenGateway(speech=speech)
    await gateway.start()
    session = session_for(gateway, **({"audio": RECORDING, "limits": replace(QUICK, at_once_s=0.15)} | fields))
    try:
        outcomes = [await run_module._outcome(check, session) for check in ABOUT_SPEECH]
    finally:
        await session.let_go()
        await gateway.stop()
    return {outcome.name: outcome for outcome in outcomes}, gateway


def names(outcomes: dict[str, Outcome], status: Status) -> set[str]:
    return {name for name, outcome in outcomes.items() if outcome.status is status}


def test_speech_that_keeps_the_contract_passes_every_check_with_its_times() -> None:
    outcomes, gateway = asyncio.run(audio_outcomes([]))

    assert names(outcomes, Status.PASSED) == NAMES
    assert outcomes["audio"].detail.startswith(f'"{WORDS}", ')
    assert outcomes["audio"].detail.endswith(" ms after the end")
    assert outcomes["audio-interim"].detail.endswith(f" s of speech, {len(HYPOTHESES)} in all")
    assert outcomes["audio-message"].detail.endswith(" ms after the end of the audio")
    assert gateway.speech is not None
    assert gateway.speech.bodies == [RECORDING.data]
    assert b"".join(gateway.speech.binary["probe-first"]) == RECORDING.data


@pytest.mark.parametrize(("fault", "failing"), BREAKS, ids=[fault.name.lower() for fault, _ in BREAKS])
def test_a_broken_promise_of_speech_fails_its_own_check_and_no_other(fault: SpeechFault, failing: set[str]) -> None:
    outcomes, _ = asyncio.run(audio_outcomes([fault]))

    assert {name: outcomes[name].detail for name in names(outcomes, Status.FAILED)}.keys() == failing


def test_all_of_it_is_sent_at_the_speed_of_speech() -> None:
    sent: list[float] = []
    outcomes, _ = asyncio.run(audio_outcomes([], on_progress=sent.append))

    assert sent[: len(sent) // 2] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])
    assert outcomes["audio"].duration_s >= RECORDING.duration_s


def test_where_speech_is_off_the_checks_are_skipped_with_the_reason() -> None:
    outcomes, _ = asyncio.run(audio_outcomes(None))

    assert names(outcomes, Status.SKIPPED) == NAMES
    assert "speech is off" in outcomes["audio"].detail


def test_an_answer_before_the_end_of_the_audio_ends_the_upload() -> None:
    long = parse_wav(wav(30.0))
    outcomes, _ = asyncio.run(asyncio.wait_for(audio_outcomes([SpeechFault.TOO_LARGE_AT_ONCE], audio=long), 10))

    assert "413" in outcomes["audio"].detail


def test_without_hypotheses_nothing_is_said_of_them() -> None:
    outcomes, _ = asyncio.run(audio_outcomes([SpeechFault.NO_HYPOTHESES]))

    assert names(outcomes, Status.SKIPPED) == {"audio-interim"}
    assert names(outcomes, Status.FAILED) == set()


def test_a_pause_may_make_two_utterances_of_binary_messages() -> None:
    outcomes, _ = asyncio.run(audio_outcomes([SpeechFault.TWO_UTTERANCES]))

    assert outcomes["audio-binary"].status is Status.PASSED
    assert f'"{WORDS}" in 2 utterances' in outcomes["audio-binary"].detail


def test_without_a_second_device_isolation_is_skipped() -> None:
    outcomes, _ = asyncio.run(audio_outcomes([], other=None))

    assert names(outcomes, Status.SKIPPED) == {"audio-isolation"}
    assert "second device" in outcomes["audio-isolation"].detail


def test_a_live_second_device_is_left_alone() -> None:
    async def scenario() -> dict[str, Outcome]:
        gateway = BrokenGateway(speech=[])
        await gateway.start()
        gateway.hold("doll")
        session = session_for(gateway, audio=RECORDING, other=given())
        outcomes = {check.name: await run_module._outcome(check, session) for check in ABOUT_SPEECH}
        await session.let_go()
        await gateway.stop()
        return outcomes

    outcomes = asyncio.run(scenario())
    assert names(outcomes, Status.SKIPPED) == {"audio-isolation"}
    assert "holds the second id" in outcomes["audio-isolation"].detail


def test_a_live_devices_own_messages_do_not_matter() -> None:
    async def scenario() -> dict[str, Outcome]:
        gateway = BrokenGateway(speech=[])
        await gateway.start()
        own_life = json.dumps({"type": "transcription", "session_id": "of its own", "text": "hello"})
        session = session_for(gateway, audio=RECORDING)
        session.on_progress = lambda sent_s: gateway.send_text("probe-first", own_life) if sent_s < 0.1 else None
        outcomes = {check.name: await run_module._outcome(check, session) for check in ABOUT_SPEECH[:-1]}
        await session.let_go()
        await gateway.stop()
        return outcomes

    assert names(asyncio.run(scenario()), Status.FAILED) == set()


def test_a_run_with_speech_has_its_checks_behind_that_of_the_upload() -> None:
    async def scenario() -> list[str]:
        gateway = BrokenGateway(speech=[])
        await gateway.start()
        try:
            report = await run(session_for(gateway, audio=RECORDING), lambda outcome: None)
        finally:
            await gateway.stop()
        assert report.ok
        return [outcome.name for outcome in report.outcomes]

    order = asyncio.run(scenario())
    at = order.index("audio")
    assert order[at : at + len(NAMES)] == [check.name for check in ABOUT_SPEECH]
    assert len(order) == len(CHECKS) + len(AUDIO_CHECKS)


def test_a_connection_that_is_lost_while_one_speaks_fails_the_check() -> None:
    async def scenario() -> Outcome:
        gateway = BrokenGateway(speech=[])
        await gateway.start()
        session = session_for(gateway, audio=RECORDING)

        def hang_up(sent_s: float) -> None:
            for connection in gateway._slots["probe-first"]:
                connection.send(8, b"\x03\xe9")

        session.on_progress = hang_up
        outcome = await run_module._outcome(ABOUT_SPEECH[0], session)
        await session.let_go()
        await gateway.stop()
        return outcome

    outcome = asyncio.run(scenario())
    assert outcome.status is Status.FAILED
    assert "ended the connection with 1001" in outcome.detail


def test_the_time_limit_of_the_upload_grows_with_the_recording() -> None:
    check = ABOUT_SPEECH[0]
    gateway = BrokenGateway()
    short, long = (session_for(gateway, audio=parse_wav(wav(seconds))) for seconds in (0.1, 9.1))

    assert check.extra_s(long) - check.extra_s(short) == pytest.approx(9.0)
