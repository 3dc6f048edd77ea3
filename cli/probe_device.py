"""``cocoa probe-device``: tests a live deployment from outside, as a device."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cocoa_tornado.plain_text import quoted

from .options import Seconds, WrongUsage, given_secret, load_settings

if TYPE_CHECKING:
    from cocoa_tornado.probe.credentials import Device, Key
    from cocoa_tornado.probe.delivery import KafkaPublisher
    from cocoa_tornado.probe.device import Message
    from cocoa_tornado.probe.recording import Recording
    from cocoa_tornado.probe.session import Session
    from cocoa_tornado.probe.verdicts import Outcome, Report

MAX_AUDIO_BYTES = 10 * 1024 * 1024
_COLOURS = {"passed": "green", "failed": "red", "skipped": "yellow"}
_BAR_COLUMNS = 40
_MIN_TIMEOUT_S, _MAX_TIMEOUT_S, _MAX_HOLD_S = 0.1, 600.0, 86400.0


@dataclass(frozen=True, slots=True)
class Request:
    """The parsed command line."""

    url: str
    also: tuple[str, ...]
    tokens: tuple[str, ...] = field(repr=False)
    device_ids: tuple[str, ...]
    secret: str | None = field(repr=False)
    audio: Path | None
    output: str
    timeout_s: float
    broker: str | None
    config: Path | None
    results_topic: str
    required: tuple[str, ...]
    strict: bool
    take_over: bool
    idle_s: float
    listen_s: float | None
    ca: Path | None
    insecure: bool


_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.command("probe-device", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("url")
@click.option(
    "--also",
    multiple=True,
    metavar="URL",
    help="Another server of the same deployment; repeatable. Also check what holds across servers: duplicates, "
    "delivery, isolation and clean-up.",
)
@click.option(
    "--token",
    "tokens",
    multiple=True,
    metavar="JWT",
    help="Token to connect with; a second one is for a second device. Other users can see the arguments of a "
    "process: pass a production token (the first) in COCOA_PROBE_TOKEN.",
)
@click.option(
    "--device-id",
    "device_ids",
    multiple=True,
    metavar="ID",
    help="Device to create a token for; at most twice.  [default: two random ids, unless --token is given]",
)
@click.option(
    "--secret",
    metavar="S",
    help="HS256 secret of the gateway, to create tokens, or @FILE to read it from a file. Other users can see the "
    "arguments of a process: pass production secrets in the environment.  "
    "[env: COCOA_JWT_SECRET; default: this machine's development key]",
)
@click.option(
    "--audio",
    type=_FILE,
    metavar="FILE.wav",
    help="Recording of speech, sent in real time; its words must return in the response and in messages.",
)
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json", "junit"]),
    default="text",
    show_default=True,
    help="Format of the report. json: one object; junit: XML for a CI server; both are printed at the end.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=Seconds(_MIN_TIMEOUT_S, _MAX_TIMEOUT_S),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Time limit for each response of the gateway.",
)
@click.option(
    "--broker",
    metavar="URL",
    help="kafka://HOST:PORT[,HOST:PORT...]: produce the records of the delivery checks to the topic. "
    "Without it, the probe posts them to the gateway, which accepts them if its own broker is memory://; groups are "
    "then not checked.",
)
@click.option(
    "--config",
    type=_FILE,
    metavar="FILE",
    help="With --broker: TOML file of a gateway with the kafka_* settings (TLS, SASL) for the connection; also "
    "COCOA_CONFIG. The environment overrides them.",
)
@click.option(
    "--results-topic",
    default="transcription.results",
    show_default=True,
    metavar="TOPIC",
    help="With --broker: topic of the records.",
)
@click.option(
    "--require",
    "required",
    multiple=True,
    metavar="CHECK",
    help="Fail if this check of the report (delivery, order, isolation...) is skipped; repeatable.",
)
@click.option("--strict", is_flag=True, help="Fail if any check is skipped.")
@click.option(
    "--take-over",
    is_flag=True,
    help="If a device with this id is connected, retry for as long as the gateway needs to find out whether it is "
    "alive. A live device is never disconnected.",
)
@click.option(
    "--idle",
    "idle_s",
    type=Seconds(0, _MAX_HOLD_S),
    default=0.0,
    metavar="SECONDS",
    help="Also keep a connection idle for this time, to detect proxies that close it. From 30 on, also check the "
    "server's ping.",
)
@click.option(
    "--listen",
    "listen_s",
    type=Seconds(0, _MAX_HOLD_S),
    metavar="SECONDS",
    help="Instead of the checks, connect as the (first) device and print every message, one per line. 0: until Ctrl-C.",
)
@click.option("--ca", type=_FILE, metavar="FILE", help="CA certificates (PEM) to use instead of the system's.")
@click.option("--insecure", is_flag=True, help="Do not verify certificates.")
def probe_device(url: str, **options: object) -> None:
    """Test a live deployment from outside, as a device.

    URL is the address of the gateway: ws://, wss://, http:// or https://, with or without /ws at the end. The report
    has one line per check, with its duration and any problem. Exit status 1 if any check failed, 2 for wrong usage.

    The probe never disconnects a device: if one with the same id is connected, the checks that need the id are skipped
    and the run fails. But an offline device can miss messages while the probe uses its id. The default is random ids,
    which no device has.

    \b
    A gateway on this machine:
      cocoa probe-device ws://127.0.0.1:8080/ws
    A deployment, with a token of a test device:
      cocoa probe-device wss://gateway.example/ws --token "$TOKEN"
    The same with the secret, which allows all checks, and the broker:
      COCOA_JWT_SECRET=@secret.txt cocoa probe-device https://gateway.example --broker kafka://k1:9092
    In CI, with delivery checks that must not be skipped:
      cocoa probe-device ws://gateway:8080 --require delivery --require isolation --format junit > probe.xml
    Check speech recognition and its latency:
      cocoa probe-device ws://127.0.0.1:8080/ws --audio hello.wav
    Check that a load balancer keeps idle connections:
      cocoa probe-device wss://gateway.example/ws --idle 180
    Check three servers that share one Redis and one group of Kafka, each by its own address:
      cocoa probe-device ws://10.0.0.1:8080 --also ws://10.0.0.2:8080 --also ws://10.0.0.3:8080 \\
        --secret @secret.txt --broker kafka://k1:9092
    Print the messages for a device:
      cocoa probe-device ws://127.0.0.1:8080/ws --device-id doll-1 --listen 0
    """
    from cocoa_tornado.errors import CocoaError  # lazy, here and below: serve and mint-token must not load the probe

    request = Request(url=url, **options)  # type: ignore[arg-type]  # click has typed them
    request = _with_environment(request)
    for name in ("kafka", "websockets"):
        # The report includes these libraries' errors; without a handler they would also go to standard error.
        logging.getLogger(name).addHandler(logging.NullHandler())
    try:
        session = _make_session(request)
        if request.listen_s is None:
            succeeded = asyncio.run(_check(session, request))
        else:
            asyncio.run(_listen(session, request.listen_s))
            succeeded = True
    except CocoaError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        # Ctrl-C ends --listen successfully, but interrupted checks have not passed.
        succeeded = request.listen_s is not None
        if not succeeded:
            click.echo("Interrupted", err=True)
    raise SystemExit(0 if succeeded else 1)


def _with_environment(request: Request) -> Request:
    """Complete the request from the environment, and validate it. Raises WrongUsage."""
    from cocoa_tornado.rules.identity import is_device_id
    from cocoa_tornado.settings.domain import Topic
    from cocoa_tornado.settings.types import WrongValue, kind_of

    tokens = request.tokens
    if not tokens and not request.device_ids and os.environ.get("COCOA_PROBE_TOKEN"):
        tokens = (os.environ["COCOA_PROBE_TOKEN"],)
    if tokens and request.device_ids:
        raise WrongUsage("--token and --device-id are mutually exclusive: a token names its device.")
    if max(len(tokens), len(request.device_ids)) > 2:
        raise WrongUsage("At most two devices can be given.")
    if len(set(request.device_ids)) != len(request.device_ids):
        raise WrongUsage("The two --device-id must differ.")
    if not all(request.device_ids):
        raise WrongUsage("--device-id must not be empty.")
    try:
        kind_of(Topic).from_text(request.results_topic)
    except WrongValue as error:
        raise WrongUsage(f"--results-topic: {error}; allowed: {kind_of(Topic).allowed}") from error
    for device_id in request.device_ids:
        if not is_device_id(device_id):
            raise WrongUsage(f"--device-id {quoted(device_id)}: an id is 1 to 128 bytes of UTF-8 in one line.")
    if request.listen_s is not None and request.also:
        raise WrongUsage("--listen connects to one server: it cannot be combined with --also.")
    if request.listen_s is not None and request.output != "text":
        raise WrongUsage("--listen prints messages, not a report: it cannot be combined with --format.")
    if request.ca is not None and request.insecure:
        raise WrongUsage("--ca and --insecure are mutually exclusive.")
    return replace(request, tokens=tokens)


def _make_session(request: Request) -> Session:
    from cocoa_tornado.probe.delivery import HttpPublisher, kafka_servers
    from cocoa_tornado.probe.run import needs_warning
    from cocoa_tornado.probe.session import Limits, Session
    from cocoa_tornado.probe.target import parse_target, tls_context
    from cocoa_tornado.probe.verdicts import ProbeError

    try:
        target, url_token = parse_target(request.url)
        also = [parse_target(url)[0] for url in request.also]
        servers = kafka_servers(request.broker) if request.broker else []
    except ProbeError as error:
        raise WrongUsage(str(error)) from error
    if len({(server.host, server.port, server.prefix) for server in (target, *also)}) <= len(also):
        raise WrongUsage("--also: each server must have an address of its own.")
    if any(server.secure for server in (target, *also)):
        tls = tls_context(request.ca, request.insecure)
        target, *also = (replace(server, tls=tls) if server.secure else server for server in (target, *also))
    if url_token and not request.tokens and not request.device_ids:
        request = replace(request, tokens=(url_token,))
    key = _key(request)
    device, other = _devices(request, key)
    warning = needs_warning([device, *([other] if other else [])])
    if warning:
        click.echo(warning, err=True)
    brokers = _publisher(request, servers) if servers else None
    return Session(
        target,
        device,
        brokers or HttpPublisher(target),
        Limits(timeout_s=request.timeout_s),
        brokers,
        other=other,
        key=key,
        idle_s=request.idle_s,
        audio=_audio(request.audio),
        take_over=request.take_over,
        also=also,
    )


def _publisher(request: Request, servers: list[str]) -> KafkaPublisher:
    """A publisher to the brokers that uses the gateway's settings for TLS and SASL."""
    from cocoa_tornado.probe.delivery import KafkaPublisher
    from cocoa_tornado.service.parts import kafka_security

    settings = load_settings(request.config, {"broker": request.broker}, with_keys=False).settings
    return KafkaPublisher(servers, request.results_topic, request.timeout_s, kafka_security(settings))


def _key(request: Request) -> Key | None:
    """The signing key: from the option, else the environment, else the development key unless tokens are given."""
    from cocoa_tornado.probe.credentials import Key, development_key

    variable = os.environ.get("COCOA_JWT_SECRET")
    if request.secret is not None:
        return Key("--secret", given_secret(request.secret, "--secret"))
    if variable:
        return Key("COCOA_JWT_SECRET", given_secret(variable, "COCOA_JWT_SECRET"))
    if request.tokens:
        return None
    folder = os.environ.get("COCOA_DATA_DIR")
    return development_key(Path(folder) if folder else None)


def _devices(request: Request, key: Key | None) -> tuple[Device, Device | None]:
    """The device of the probe and, if possible, a second one."""
    from cocoa_tornado.probe.credentials import from_token, minted, random_device_id
    from cocoa_tornado.probe.verdicts import ProbeError

    now = time.time()
    try:
        devices = [from_token(token) for token in request.tokens]
    except ProbeError as error:
        raise WrongUsage(str(error)) from error
    if len({device.device_id for device in devices}) != len(devices):
        raise WrongUsage("The two tokens are for the same device.")
    if key is not None:
        devices += [minted(key, device_id, now, given=True) for device_id in request.device_ids]
        # Create a second token only with a key that signed the first, as the gateway may not know another key.
        if not request.tokens or key.signs(devices[0].token):
            devices += [minted(key, random_device_id(), now) for _ in range(2 - len(devices))]
    return devices[0], devices[1] if len(devices) > 1 else None


def _audio(path: Path | None) -> Recording | None:
    from cocoa_tornado.probe.recording import parse_wav
    from cocoa_tornado.probe.verdicts import ProbeError

    if path is None:
        return None
    try:
        data = path.read_bytes()
        if len(data) > MAX_AUDIO_BYTES:
            raise WrongUsage(f"--audio: {path} is larger than 10 MiB, the limit of a gateway.")
        return parse_wav(data)
    except OSError as error:
        raise WrongUsage(f"--audio: cannot read {path}: {error.strerror}") from error
    except ProbeError as error:
        raise WrongUsage(f"--audio: {path} {error}.") from error


# --- Running -------------------------------------------------------------------------------------------------------


async def _check(session: Session, request: Request) -> bool:
    """Run the checks and print the report. Return True if none failed."""
    from cocoa_tornado.probe.report import json_document, junit_document, summary
    from cocoa_tornado.probe.run import checks_for, run

    output, names = request.output, {check.name for check in checks_for(session)}
    for name in request.required:
        if name not in names:
            raise WrongUsage(
                f"--require {quoted(name)}: this run has no such check; its checks are {', '.join(sorted(names))}."
            )
    bar = SpeechBar(session.audio.duration_s if session.audio else 0.0)
    session.on_progress = bar.show

    def on_outcome(outcome: Outcome) -> None:
        bar.clear()
        if output == "text":
            _print_outcome(outcome)

    try:
        report: Report = await run(session, on_outcome, names if request.strict else request.required)
    finally:
        bar.clear()
    if output == "json":  # UTF-8 in any locale, as parsers and the XML declaration expect
        click.echo(json_document(report).encode("utf-8", "backslashreplace"))
    elif output == "junit":
        click.echo(junit_document(report).encode("utf-8", "backslashreplace"))
    else:
        click.echo()
        click.secho(summary(report), fg="green" if report.ok else "red", bold=True)
    return report.ok


class SpeechBar:
    """A progress bar of the recording in the last line of a terminal. Without a terminal it prints nothing.

    It uses standard error, so that reports do not contain it. Printed lines replace it.
    """

    def __init__(self, duration_s: float) -> None:
        self._duration_s = duration_s
        self._is_shown = False

    def show(self, sent_s: float) -> None:
        """:param sent_s: seconds of the recording sent so far"""
        if sys.stderr is not None and sys.stderr.isatty():
            self._is_shown = True
            done = "#" * round(_BAR_COLUMNS * sent_s / self._duration_s)
            text = f"\rspeaking [{done:<{_BAR_COLUMNS}}] {sent_s:.1f} of {self._duration_s:.1f} s"
            click.echo(text, nl=False, err=True)

    def clear(self) -> None:
        """Remove the bar, if it is shown."""
        if self._is_shown:
            self._is_shown = False
            click.echo("\r\x1b[K", nl=False, err=True)


def _print_outcome(outcome: Outcome) -> None:
    from cocoa_tornado.probe.report import MARKS, PLAIN_MARKS, text_line

    colour = _COLOURS[outcome.status.value]
    mark = (MARKS if _can_print(MARKS.values()) else PLAIN_MARKS)[outcome.status]
    line = text_line(outcome)
    if not _can_print([line]):
        line = line.encode("ascii", "backslashreplace").decode("ascii")
    click.echo(f"{click.style(mark, fg=colour)} {line}")
    sys.stdout.flush()  # so that a slow check does not delay finished ones


def _can_print(texts: Iterable[str]) -> bool:
    try:
        for text in texts:
            text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


async def _listen(session: Session, seconds: float) -> None:
    from cocoa_tornado.probe.run import listen

    from .unread import while_read

    def show(message: Message) -> None:
        if isinstance(message, bytes):
            click.echo(f"(a binary message of {len(message)} bytes)", err=True)
        else:
            click.echo(message)
            sys.stdout.flush()

    await while_read(listen(session, seconds, show))
