"""``python -m demo``: two devices speak to a gateway at the same time, and each gets its own words."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from bench.soak_gateway import GatewayFailed, GatewayProcess
from cocoa_tornado.probe.credentials import Device, Key, minted
from cocoa_tornado.probe.device import Link, connect
from cocoa_tornado.probe.judge import judge_audio, session_of
from cocoa_tornado.probe.judge_speech import Received
from cocoa_tornado.probe.recording import Recording, parse_wav
from cocoa_tornado.probe.speaking import Collector, collecting, post_speech
from cocoa_tornado.probe.target import Target
from cocoa_tornado.probe.wire import NotHttpError, Upgrade, json_value

HERE: Final = Path(__file__).parent
ENGINE: Final = "pocketsphinx://"
FINAL_PATIENCE_S: Final = 10.0
ANSWER_PATIENCE_S: Final = 120.0
QUIET_S: Final = 0.5
"""How long to wait for unexpected messages."""


class DemoFailed(Exception):
    """The demonstration could not run to its end; ``str()`` is one line."""


@dataclass(frozen=True, slots=True)
class Line:
    """The recording that a device plays.

    :ivar words: its correct transcript
    """

    device_id: str
    file: str
    words: str


LINES: Final = (
    Line("doll-1", "somewhere.wav", "go somewhere and do something"),
    Line("doll-2", "digits.wav", "two nine three four zero"),
)


@dataclass(frozen=True, slots=True)
class Part:
    """The result of one device."""

    line: Line
    session_id: str
    text: str
    received: Sequence[Received]


def shortcomings(parts: Sequence[Part]) -> list[str]:
    """The problems, one line each; empty if each device got its own words and nothing else.

    A misrecognized word is no problem, but a word of another device is.
    """
    found = []
    for part in parts:
        name = part.line.device_id
        strange = [item for item in part.received if session_of(item.message) != part.session_id]
        finals = [item for item in part.received if item not in strange and item.fields.get("final") is True]
        if strange:
            found.append(f"{name} got {len(strange)} messages of other streams")
        if len(finals) != 1:
            found.append(f"{name} got {len(finals)} final messages, expected 1")
        elif finals[0].text != part.text:
            found.append(f'{name} got "{finals[0].text}", but was answered "{part.text}"')
        if not _sounds_like(part, parts):
            found.append(f'{name} said "{part.line.words}", but "{part.text}" was recognized')
    return found


def _sounds_like(part: Part, parts: Sequence[Part]) -> bool:
    """Whether the text has more words in common with the device's own line than with any other."""
    heard = set(part.text.lower().split())

    def in_common(line: Line) -> int:
        return len(heard & set(line.words.split()))

    others = [in_common(other.line) for other in parts if other is not part]
    return in_common(part.line) > max([0, *others])


async def play(target: Target, key: Key) -> list[Part]:
    """Let both devices connect and speak at the same time, and print all messages as they arrive.

    :raises DemoFailed: a device is refused, or gets no transcript
    """
    began_at = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        links = [await stack.enter_async_context(_connected(target, key, line)) for line in LINES]
        collectors = [await stack.enter_async_context(collecting(link)) for _, link in links]
        printing = asyncio.create_task(_print_received(collectors, began_at))
        try:
            async with asyncio.timeout(ANSWER_PATIENCE_S):
                speaking = (_speak(target, device, line) for (device, _), line in zip(links, LINES, strict=True))
                answers = await asyncio.gather(*speaking)
            sessions = [str(answer["session_id"]) for answer in answers]
            for collector, session_id in zip(collectors, sessions, strict=True):
                await _await_final(collector, session_id)
            await asyncio.sleep(QUIET_S)
        except TimeoutError as error:
            raise DemoFailed(f"no answer within {ANSWER_PATIENCE_S:.0f} s") from error
        finally:
            printing.cancel()
            await asyncio.wait([printing])
    return [
        Part(line, session_id, str(answer["text"]), tuple(collector.received))
        for line, session_id, answer, collector in zip(LINES, sessions, answers, collectors, strict=True)
    ]


@contextlib.asynccontextmanager
async def _connected(target: Target, key: Key, line: Line) -> AsyncIterator[tuple[Device, Link]]:
    device = minted(key, line.device_id, time.time())
    response, link = await connect(target, Upgrade(device.token))
    if link is None:
        raise DemoFailed(f"{line.device_id} was not let in: {response.status}")
    try:
        yield device, link
    finally:
        await link.drop()


async def _speak(target: Target, device: Device, line: Line) -> dict[str, object]:
    """Upload the line, and return the response's JSON object."""
    try:
        spoken = await post_speech(target, device.token, load(line), lambda sent_s: None)
    except NotHttpError as error:
        raise DemoFailed(f"{line.device_id}: {error}") from error
    if problem := judge_audio(spoken.response):
        raise DemoFailed(f"{line.device_id}: {problem}")
    answer = json_value(spoken.response.body)
    assert isinstance(answer, dict)  # judge_audio has checked it
    return answer


def load(line: Line) -> Recording:
    """The recording of a line."""
    return parse_wav((HERE / line.file).read_bytes())


async def _await_final(collector: Collector, session_id: str) -> None:
    """Wait for the final message, within the time limit; :func:`shortcomings` reports a missing one."""

    def is_there() -> bool:
        return any(item.session_id == session_id and item.fields.get("final") is True for item in collector.received)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FINAL_PATIENCE_S):
            await collector.until(is_there)


async def _print_received(collectors: Sequence[Collector], began_at: float) -> None:
    """Print each message on a line as it arrives."""

    async def follow(line: Line, collector: Collector) -> None:
        printed: list[Received] = []
        while collector.lost is None:
            await collector.until(lambda: len(collector.received) > len(printed))
            for item in collector.received[len(printed) :]:
                kind = "      " if item.is_hypothesis else "final "
                click.echo(f"  {item.at - began_at:5.1f} s  {line.device_id} <- {kind}{item.text}")
                printed.append(item)

    await asyncio.gather(*(follow(line, collector) for line, collector in zip(LINES, collectors, strict=True)))


async def perform() -> list[str]:
    """Start a gateway, let the devices speak, and stop it. Returns the problems.

    :raises DemoFailed: it could not run to its end
    """
    secret = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory(prefix="cocoa-demo-") as folder:
        gateway = GatewayProcess(Path(folder), secret, ["--speech", ENGINE, "--speech-workers", str(len(LINES))])
        try:
            await gateway.start()
            click.echo(f"Gateway on http://127.0.0.1:{gateway.port}, speech engine {ENGINE}")
            await gateway.await_ready()
            for line in LINES:
                click.echo(f'{line.device_id} says "{line.words}" ({load(line).duration_s:.1f} s, demo/{line.file})')
            click.echo("Messages as they arrive:")
            parts = await play(Target("127.0.0.1", gateway.port, secure=False), Key("the demonstration", secret))
        except (GatewayFailed, OSError) as error:
            raise DemoFailed(str(error)) from error
        finally:
            await gateway.stop()
    click.echo("Final messages of each device, as sent:")
    for part in parts:
        for item in part.received:
            if not item.is_hypothesis:
                click.echo(f"  {part.line.device_id} <- {item.message!s}")
    return shortcomings(parts)


@click.command()
def main() -> None:
    """Two devices speak to a gateway at the same time, and each gets its own words and nothing else."""
    try:
        found = asyncio.run(perform())
    except DemoFailed as error:
        raise click.ClickException(str(error)) from error
    for line in found:
        click.echo(f"Problem: {line}")
    if not found:
        click.echo("Success: each device got its own words, and nothing else.")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
