"""``cocoa probe-device``: checks a live deployment from outside, as a device."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from cocoa_tornado.plain_text import quoted

from .options import given_secret, load_settings

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


class WrongUsage(click.ClickException):
    """One plain line on standard error, exit status 2."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, slots=True)
class Request:
    """The command line, as it was given."""

    url: str
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


class _Seconds(click.FloatRange):
    """A number of seconds in a range. Refuses NaN, which click.FloatRange accepts."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        return seconds if math.isfinite(seconds) else self.fail(f"{quoted(str(value))} is not a number of seconds.")


_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.command("probe-device", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("url")
@click.option(
    "--token",
    "tokens",
    multiple=True,
    metavar="JWT",
    help="Token to connect with; given twice, the second is for a second device. Others see the arguments of a "
    "process: COCOA_PROBE_TOKEN (the first token) is the place for a token of value.",
)
@click.option(
    "--device-id",
    "device_ids",
    multiple=True,
    metavar="ID",
    help="Device to mint a token for; at most twice. Without --token and --device-id: two random ids.",
)
@click.option(
    "--secret",
    metavar="S",
    help="The gateway's HS256 secret, to mint tokens with, or @FILE that holds it. Others see the arguments of a "
    "process: the environment is the place for a secret of value. "
    "[env: COCOA_JWT_SECRET; default: this machine's development key]",
)
@click.option(
    "--audio",
    type=_FILE,
    metavar="FILE.wav",
    help="Speech, sent at the speed at which it is spoken; its words must come back, as the answer and as messages.",
)
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json", "junit"]),
    default="text",
    show_default=True,
    help="json: one object; junit: XML for a CI server. Both at the end, on standard output.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=_Seconds(_MIN_TIMEOUT_S, _MAX_TIMEOUT_S),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the gateway may take over each answer.",
)
@click.option(
    "--broker",
    metavar="URL",
    help="kafka://HOST:PORT[,HOST:PORT...]: produce the records for the delivery checks to the topic itself. "
    "Without it they are posted to the gateway, which takes them where its own broker is memory://.",
)
@click.option(
    "--config",
    type=_FILE,
    metavar="FILE",
    help="With --broker: a gateway's TOML file, whose kafka_* settings (TLS, SASL) are used to connect; also "
    "COCOA_CONFIG. Those in the environment count in any case.",
)
@click.option(
    "--results-topic", default="transcription.results", show_default=True, metavar="TOPIC", help="With --broker."
)
@click.option(
    "--require",
    "required",
    multiple=True,
    metavar="CHECK",
    help="Fail if this check is skipped, by its name in the report (delivery, order, isolation...); repeatable.",
)
@click.option("--strict", is_flag=True, help="Fail if any check is skipped.")
@click.option(
    "--take-over",
    is_flag=True,
    help="Where the id is refused because a device holds it, try again for as long as the gateway takes to find out "
    "whether that device is alive. A device that is alive is never put out.",
)
@click.option(
    "--idle",
    "idle_s",
    type=_Seconds(0, _MAX_HOLD_S),
    default=0.0,
    metavar="SECONDS",
    help="Also hold a connection idle for so long: finds proxies that cut it. From 30 on, the server's ping is "
    "checked too.",
)
@click.option(
    "--listen",
    "listen_s",
    type=_Seconds(0, _MAX_HOLD_S),
    metavar="SECONDS",
    help="Instead of the checks: connect as the (first) device and print every message, one a line. 0: until Ctrl-C.",
)
@click.option("--ca", type=_FILE, metavar="FILE", help="Certificates (PEM) to trust instead of the system's.")
@click.option("--insecure", is_flag=True, help="Believe any certificate.")
def probe_device(url: str, **options: object) -> None:
    """Check a live deployment from outside, as a device.

    URL is where it is: ws://, wss://, http:// or https://, with or without /ws at its end. One line per check, with
    its time and what went wrong; exit status 1 if any check failed, 2 for wrong usage.

    Nothing is taken from a device that is connected: where the id is held, the checks that need it are not made, and
    the run fails. But a device that is away could miss messages while the probe plays it; the random ids that are
    used by default belong to nobody.

    \b
    A gateway on this machine:
      cocoa probe-device ws://127.0.0.1:8080/ws
    A deployment, with a token that was issued for a test device:
      cocoa probe-device wss://gateway.example/ws --token "$TOKEN"
    The same, with the key (all checks can be made) and the broker behind it:
      COCOA_JWT_SECRET=@secret.txt cocoa probe-device https://gateway.example --broker kafka://k1:9092
    In CI, where delivery must have been checked:
      cocoa probe-device ws://gateway:8080 --require delivery --require isolation --format junit > probe.xml
    Is speech recognised, how soon do the words come, and to whom?
      cocoa probe-device ws://127.0.0.1:8080/ws --audio hello.wav
    Does the load balancer keep idle connections?
      cocoa probe-device wss://gateway.example/ws --idle 180
    What does a device get?
      cocoa probe-device ws://127.0.0.1:8080/ws --device-id doll-1 --listen 0
    """
    from cocoa_tornado.errors import CocoaError  # here and below: serve and mint-token must not load the probe

    request = Request(url=url, **options)  # type: ignore[arg-type]  # click has typed them
    request = _with_environment(request)
    for name in ("kafka", "websockets"):
        # What these libraries have to say is in the verdicts; without a handler it would also go to standard error.
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
        # Ctrl-C is how listening ends; checks that are broken off have not passed.
        succeeded = request.listen_s is not None
    raise SystemExit(0 if succeeded else 1)


def _with_environment(request: Request) -> Request:
    """The request, completed from the environment, and judged as a whole. Raises WrongUsage."""
    from cocoa_tornado.rules.identity import is_device_id
    from cocoa_tornado.settings.domain import Topic
    from cocoa_tornado.settings.types import WrongValue, kind_of

    tokens = request.tokens
    if not tokens and not request.device_ids and os.environ.get("COCOA_PROBE_TOKEN"):
        tokens = (os.environ["COCOA_PROBE_TOKEN"],)
    if tokens and request.device_ids:
        raise WrongUsage("--token and --device-id exclude each other: a token names its device.")
    if max(len(tokens), len(request.device_ids)) > 2:
        raise WrongUsage("At most two devices are of use.")
    if len(set(request.device_ids)) != len(request.device_ids):
        raise WrongUsage("--device-id given twice needs two different ids.")
    if not all(request.device_ids):
        raise WrongUsage("--device-id may not be empty.")
    try:
        kind_of(Topic).from_text(request.results_topic)
    except WrongValue as error:
        raise WrongUsage(f"--results-topic: {error}; allowed: {kind_of(Topic).allowed}") from error
    for device_id in request.device_ids:
        if not is_device_id(device_id):
            raise WrongUsage(f"--device-id {quoted(device_id)}: an id is 1 to 128 bytes of UTF-8 in one line.")
    if request.listen_s is not None and request.output != "text":
        raise WrongUsage("--listen prints messages and makes no report: --format does not go with it.")
    if request.ca is not None and request.insecure:
        raise WrongUsage("--ca and --insecure contradict each other.")
    return replace(request, tokens=tokens)


def _make_session(request: Request) -> Session:
    from cocoa_tornado.probe.delivery import HttpPublisher, kafka_servers
    from cocoa_tornado.probe.run import needs_warning
    from cocoa_tornado.probe.session import Limits, Session
    from cocoa_tornado.probe.target import parse_target, tls_context
    from cocoa_tornado.probe.verdicts import ProbeError

    try:
        target, url_token = parse_target(request.url)
        servers = kafka_servers(request.broker) if request.broker else []
    except ProbeError as error:
        raise WrongUsage(str(error)) from error
    if target.secure:
        target = replace(target, tls=tls_context(request.ca, request.insecure))
    if url_token and not request.tokens and not request.device_ids:
        request = replace(request, tokens=(url_token,))
    key = _key(request)
    device, other = _devices(request, key)
    warning = needs_warning([device, *([other] if other else [])])
    if warning:
        click.echo(warning, err=True)
    return Session(
        target,
        device,
        _publisher(request, servers) if servers else HttpPublisher(target),
        Limits(timeout_s=request.timeout_s),
        other=other,
        key=key,
        idle_s=request.idle_s,
        audio=_audio(request.audio),
        take_over=request.take_over,
    )


def _publisher(request: Request, servers: list[str]) -> KafkaPublisher:
    """To the brokers, as the gateway's own settings say that they are reached."""
    from cocoa_tornado.probe.delivery import KafkaPublisher
    from cocoa_tornado.service_parts import kafka_security

    settings = load_settings(request.config, {"broker": request.broker}, with_keys=False).settings
    return KafkaPublisher(servers, request.results_topic, request.timeout_s, kafka_security(settings))


def _key(request: Request) -> Key | None:
    """The key to sign with. Cases: given; from the environment; the development key, unless tokens were given."""
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
    """The device that the probe plays, and a second one, where one can be had."""
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
        # Only a key that the first token was signed with is known to be good for a second device.
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
            raise WrongUsage(f"--audio: {path} is over 10 MiB, the most that a gateway takes.")
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
                f"--require {quoted(name)}: this run has no such check; it has {', '.join(sorted(names))}."
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
    if output == "json":  # UTF-8 in any locale: programs read it, and the XML says so
        click.echo(json_document(report).encode("utf-8", "backslashreplace"))
    elif output == "junit":
        click.echo(junit_document(report).encode("utf-8", "backslashreplace"))
    else:
        click.echo()
        click.secho(summary(report), fg="green" if report.ok else "red", bold=True)
    return report.ok


class SpeechBar:
    """How much of the recording has been sent: a bar in the last line of a terminal, and nothing anywhere else.

    It stands on standard error, so that it does not get into a report; each line that is printed takes its place.
    """

    def __init__(self, duration_s: float) -> None:
        self._duration_s = duration_s
        self._is_shown = False

    def show(self, sent_s: float) -> None:
        """:param sent_s: seconds of the recording that are sent"""
        if sys.stderr is not None and sys.stderr.isatty():
            self._is_shown = True
            done = "#" * round(_BAR_COLUMNS * sent_s / self._duration_s)
            text = f"\rspeaking [{done:<{_BAR_COLUMNS}}] {sent_s:.1f} of {self._duration_s:.1f} s"
            click.echo(text, nl=False, err=True)

    def clear(self) -> None:
        """Take the bar away, if there is one."""
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
    sys.stdout.flush()  # a check that takes its time must not hold back what is known


def _can_print(texts: Iterable[str]) -> bool:
    try:
        for text in texts:
            text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


async def _listen(session: Session, seconds: float) -> None:
    from cocoa_tornado.probe.run import listen

    def show(message: Message) -> None:
        if isinstance(message, bytes):
            click.echo(f"(a binary message of {len(message)} bytes)", err=True)
        else:
            click.echo(message)
            sys.stdout.flush()

    await listen(session, seconds, show)
