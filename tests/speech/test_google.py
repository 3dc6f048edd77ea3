"""Google's recogniser, against a service on loopback that speaks the same proto over gRPC."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from cocoa_tornado.errors import EngineFailed
from cocoa_tornado.speech.engines import engine_of
from cocoa_tornado.speech.google import BUFFER_BYTES, GoogleLimits, GoogleRecognizer

from .google_server import BYTES_PER_SECOND, MOST_BYTES, SpeechService

WORDS = "one two three four five six seven eight"
RECORDING = random.Random(1).randbytes(8 * BYTES_PER_SECOND)
OTHER_WORDS = "red green blue yellow"
OTHER_RECORDING = random.Random(2).randbytes(2 * BYTES_PER_SECOND)
PATIENCE_S = 30.0


@pytest.fixture
def service() -> Iterator[SpeechService]:
    with SpeechService({WORDS: RECORDING, OTHER_WORDS: OTHER_RECORDING}) as running:
        yield running


@pytest.fixture
def recognizer(service: SpeechService) -> Iterator[GoogleRecognizer]:
    with closing(GoogleRecognizer(engine_of(service.url))) as ready:
        yield ready


def with_limits(service: SpeechService, **limits: float) -> closing[GoogleRecognizer]:
    return closing(GoogleRecognizer(engine_of(service.url), limits=GoogleLimits(**limits)))


def recognize(recognizer: GoogleRecognizer, audio: bytes, piece_bytes: int = 3_200) -> str:
    recognizer.begin(None)
    for start in range(0, len(audio), piece_bytes):
        recognizer.accept(audio[start : start + piece_bytes])
    return recognizer.finish()


def test_the_words_of_the_audio_come_back(recognizer: GoogleRecognizer) -> None:
    assert recognize(recognizer, RECORDING) == WORDS


def test_silence_has_no_words(recognizer: GoogleRecognizer) -> None:
    assert recognize(recognizer, bytes(BYTES_PER_SECOND)) == ""


def test_no_audio_is_no_call(recognizer: GoogleRecognizer, service: SpeechService) -> None:
    assert recognize(recognizer, b"") == ""
    assert service.calls == []


@pytest.mark.parametrize("piece_bytes", [640, 100_000, len(RECORDING)])
def test_every_sample_is_sent_in_requests_that_the_service_takes(
    recognizer: GoogleRecognizer, service: SpeechService, piece_bytes: int
) -> None:
    assert recognize(recognizer, RECORDING, piece_bytes) == WORDS
    (call,) = service.calls
    assert bytes(call.audio) == RECORDING
    assert max(call.sizes) <= 15_000 < MOST_BYTES, "the reference says 15 KB, the service takes 25,600 bytes"


def test_the_first_request_says_what_the_audio_is_and_in_which_language(service: SpeechService) -> None:
    url = f"{service.url}&location=europe-west4&model=chirp_2"
    with closing(GoogleRecognizer(engine_of(url), language="de-DE")) as recognizer:
        recognize(recognizer, RECORDING)
    first = service.calls[0].first
    assert first.recognizer == "projects/test/locations/europe-west4/recognizers/_"
    config = first.streaming_config.config
    assert config.explicit_decoding_config.encoding.name == "LINEAR16"
    assert config.explicit_decoding_config.sample_rate_hertz == 16_000
    assert config.explicit_decoding_config.audio_channel_count == 1
    assert (list(config.language_codes), config.model) == (["de-DE"], "chirp_2")
    assert not first.streaming_config.streaming_features.interim_results


def test_a_language_in_the_url_counts_more_than_the_setting(service: SpeechService) -> None:
    url = f"{service.url}&language=fr-FR,nl-NL"
    with closing(GoogleRecognizer(engine_of(url), language="de-DE")) as recognizer:
        assert recognizer.detail == "google, project test, global, long, fr-FR,nl-NL"


def test_a_recogniser_of_ones_own_keeps_what_the_url_does_not_say(service: SpeechService) -> None:
    with closing(GoogleRecognizer(engine_of(f"{service.url}&recognizer=toys"))) as recognizer:
        recognize(recognizer, RECORDING)
    first = service.calls[0].first
    assert first.recognizer == "projects/test/locations/global/recognizers/toys"
    assert (list(first.streaming_config.config.language_codes), first.streaming_config.config.model) == ([], "")


def test_interims_grow_before_the_result(recognizer: GoogleRecognizer) -> None:
    interims: list[str] = []
    recognizer.begin(interims.append)
    for start in range(0, len(RECORDING), 3_200):
        recognizer.accept(RECORDING[start : start + 3_200])
    assert recognizer.finish() == WORDS
    assert interims
    assert all(WORDS.startswith(interim) for interim in interims)
    assert [len(interim) for interim in interims] == sorted({len(interim) for interim in interims})


def test_an_utterance_longer_than_a_stream_may_be_goes_on_in_another(service: SpeechService) -> None:
    service.limit_s = 1.5
    with with_limits(service, stream_s=1.0) as recognizer:
        assert recognize(recognizer, RECORDING) == WORDS
    assert len(service.calls) >= 3
    assert sum(len(call.audio) for call in service.calls) == len(RECORDING)


def test_a_stream_that_is_open_for_long_is_followed_by_another_too(service: SpeechService) -> None:
    now = [0.0]
    recognizer = GoogleRecognizer(engine_of(service.url), clock=lambda: now[0])
    half = len(RECORDING) // 2
    with closing(recognizer):
        recognizer.begin(None)
        recognizer.accept(RECORDING[:half])
        now[0] += 290
        recognizer.accept(RECORDING[half:])
        assert recognizer.finish() == WORDS
    assert [len(call.audio) for call in service.calls] == [half, half]


def test_a_pause_ends_the_stream_and_more_audio_begins_another(service: SpeechService) -> None:
    half = len(RECORDING) // 2
    with with_limits(service, pause_s=0.05) as recognizer:
        recognizer.begin(None)
        recognizer.accept(RECORDING[:half])
        assert service.last_call(PATIENCE_S).over.wait(PATIENCE_S)
        recognizer.accept(RECORDING[half:])
        assert recognizer.finish() == WORDS
    assert len(service.calls) >= 2
    assert all(call.finished for call in service.calls)


@pytest.mark.parametrize("hasty", [1, 7])
def test_a_service_that_hears_one_utterance_only_is_given_the_rest_in_another_stream(
    recognizer: GoogleRecognizer, service: SpeechService, hasty: int
) -> None:
    service.hasty = hasty
    assert recognize(recognizer, RECORDING) == WORDS
    assert recognize(recognizer, OTHER_RECORDING, len(OTHER_RECORDING)) == OTHER_WORDS


def test_a_service_that_ends_every_stream_is_not_asked_for_ever(service: SpeechService) -> None:
    service.hasty = 0
    with with_limits(service) as recognizer:
        recognizer.begin(None)
        with pytest.raises(EngineFailed, match=r"^Google ends every stream before its time$"):
            send_until_it_fails(recognizer)
    assert len(service.calls) <= 64


def send_until_it_fails(recognizer: GoogleRecognizer) -> None:
    for _ in range(100_000):
        recognizer.accept(bytes(3_200))


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "Google does not accept the credentials (UNAUTHENTICATED)"),
        (
            grpc.StatusCode.PERMISSION_DENIED,
            "the Google credentials may not use speech recognition in this project (PERMISSION_DENIED)",
        ),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "the quota of the Google project is used up (RESOURCE_EXHAUSTED)"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Google did not answer in time (DEADLINE_EXCEEDED)"),
        (grpc.StatusCode.UNAVAILABLE, "Google cannot be reached (UNAVAILABLE)"),
    ],
)
def test_a_refusal_is_one_line_without_the_servers_own_words(
    recognizer: GoogleRecognizer, service: SpeechService, status: grpc.StatusCode, sentence: str
) -> None:
    service.refusal = (status, "Bearer ya29.secret was refused")
    with pytest.raises(EngineFailed) as raised:
        recognize(recognizer, RECORDING)
    assert str(raised.value) == sentence


def test_credentials_that_cannot_be_refreshed_are_not_taken_for_a_lost_network(
    recognizer: GoogleRecognizer, service: SpeechService
) -> None:
    service.refusal = (grpc.StatusCode.UNAVAILABLE, "Getting metadata from plugin failed with error: invalid_grant")
    with pytest.raises(EngineFailed, match=r"^the Google credentials cannot be refreshed$"):
        recognize(recognizer, RECORDING)


def test_any_other_failure_has_the_servers_text_in_one_line(
    recognizer: GoogleRecognizer, service: SpeechService
) -> None:
    service.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "No such model:\n  'shorty'")
    with pytest.raises(EngineFailed, match=r"^Google failed: INVALID_ARGUMENT: No such model: 'shorty'$"):
        recognize(recognizer, RECORDING)


def test_a_stream_that_the_service_cuts_off_for_its_length_fails(service: SpeechService) -> None:
    service.limit_s = 1.0
    with with_limits(service) as recognizer, pytest.raises(EngineFailed, match="OUT_OF_RANGE"):
        recognize(recognizer, RECORDING)


def test_after_a_failure_the_next_utterance_is_recognised(recognizer: GoogleRecognizer, service: SpeechService) -> None:
    service.refusal = (grpc.StatusCode.INTERNAL, "oops")
    with pytest.raises(EngineFailed):
        recognize(recognizer, RECORDING)
    service.refusal = None
    assert recognize(recognizer, OTHER_RECORDING) == OTHER_WORDS


def test_a_service_that_takes_no_audio_any_more_is_given_up(service: SpeechService) -> None:
    service.unresponsive = True
    with with_limits(service, stall_s=0.3) as recognizer:
        recognizer.begin(None)
        with pytest.raises(EngineFailed, match=r"^Google takes no more audio: nothing for 0\.3 s$"):
            recognizer.accept(bytes(40 * BUFFER_BYTES))
        recognizer.begin(None)
        assert service.last_call(PATIENCE_S).over.wait(PATIENCE_S)


def test_a_service_that_never_answers_is_given_up(service: SpeechService) -> None:
    service.silent = True
    with with_limits(service, stall_s=0.3) as recognizer:
        with pytest.raises(EngineFailed, match=r"^Google owes an answer: nothing for 0\.3 s$"):
            recognize(recognizer, RECORDING)
        assert service.last_call(PATIENCE_S).over.wait(PATIENCE_S)


def test_a_service_that_is_not_there_is_named() -> None:
    with SpeechService() as service:
        gone = service.url
    recognizer = GoogleRecognizer(engine_of(gone))
    with closing(recognizer), pytest.raises(EngineFailed, match=r"^Google cannot be reached \(UNAVAILABLE\)$"):
        recognize(recognizer, RECORDING)


def test_beginning_again_cancels_the_call_and_drops_its_words(
    recognizer: GoogleRecognizer, service: SpeechService
) -> None:
    interims: list[str] = []
    has_interim = threading.Event()

    def note(interim: str) -> None:
        interims.append(interim)
        has_interim.set()

    recognizer.begin(note)
    start = 0
    while not has_interim.is_set():
        recognizer.accept(RECORDING[start : start + 3_200])
        start += 3_200
    before = len(interims)
    recognizer.begin(None)
    recognizer.accept(OTHER_RECORDING)
    assert recognizer.finish() == OTHER_WORDS
    assert len(interims) == before
    first = service.calls[0]
    assert first.over.wait(PATIENCE_S)
    assert not first.finished


@pytest.fixture
def no_google_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT", "GOOGLE_CLOUD_QUOTA_PROJECT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_google_environment")
def test_without_credentials_the_engine_says_how_to_give_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file.json")
    with pytest.raises(EngineFailed, match=r"^no Google credentials: set GOOGLE_APPLICATION_CREDENTIALS, or run "):
        GoogleRecognizer(engine_of("google://"))


@pytest.mark.usefixtures("no_google_environment")
def test_a_project_comes_from_the_credentials_unless_the_url_names_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(service_account(tmp_path)))
    with closing(GoogleRecognizer(engine_of("google://?location=europe-west4"))) as recognizer:
        assert recognizer.detail == "google, project toys, europe-west4, long, en-US"
    with closing(GoogleRecognizer(engine_of("google://?project=dolls"))) as recognizer:
        assert recognizer.detail == "google, project dolls, global, long, en-US"


@pytest.mark.logs("google.auth", "No project ID")
@pytest.mark.usefixtures("no_google_environment")
def test_credentials_without_a_project_need_one_in_the_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    user = tmp_path / "user.json"
    known = {"type": "authorized_user", "client_id": "1", "client_secret": "2", "refresh_token": "3"}
    user.write_text(json.dumps(known), encoding="utf-8")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(user))
    with pytest.raises(EngineFailed, match=r"^the Google credentials name no project: say google://\?project=\.\.\.$"):
        GoogleRecognizer(engine_of("google://"))


def service_account(folder: Path) -> Path:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "project_id": "toys",
        "private_key": key.decode(),
        "client_email": "gateway@toys.example",
        "token_uri": "https://oauth.invalid/token",
    }
    path = folder / "account.json"
    path.write_text(json.dumps(account), encoding="utf-8")
    return path
