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
from cocoa_tornado.probe.judge_speech import Arrival
from cocoa_tornado.probe.recording import Recording, parse_wav
from cocoa_tornado.probe.speaking import Inbox, collecting, post_speech
from cocoa_tornado.probe.target import Target
from cocoa_tornado.probe.wire import NotHttpError, Upgrade, json_value

HERE: Final = Path(__file__).parent
ENGINE: Final = "pocketsphinx://"
FINAL_PATIENCE_S: Final = 10.0
ANSWER_PATIENCE_S: Final = 120.0
QUIET_S: Final = 0.5
"""For so long nothing must have come to have nothing come."""


class DemoFailed(Exception):
    """Something else than the words went wrong; ``str()`` is one line."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a device says.

    :ivar words: what a person hears in the recording
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
    """A device in its part, and what has come of it."""

    line: Line
    session_id: str
    text: str
    arrivals: Sequence[Arrival]


def shortcomings(parts: Sequence[Part]) -> list[str]:
    """What is not as it should be, one line each; empty where each device got its own words and nothing else.

    A word that the engine has misheard is its own affair; the words of another device are not.
    """
    found = []
    for part in parts:
        name = part.line.device_id
        strange = [item for item in part.arrivals if session_of(item.message) != part.session_id]
        finals = [item for item in part.arrivals if item not in strange and item.fields.get("final") is True]
        if strange:
            found.append(f"{name} got {len(strange)} messages that are not of its own stream")
        if len(finals) != 1:
            found.append(f"{name} got {len(finals)} final messages, expected 1")
        elif finals[0].text != part.text:
            found.append(f'{name} got "{finals[0].text}", but was answered "{part.text}"')
        if not _sounds_like(part, parts):
            found.append(f'{name} said "{part.line.words}", and "{part.text}" was understood')
    return found


def _sounds_like(part: Part, parts: Sequence[Part]) -> bool:
    """Its text has more words in common with its own line than with any other."""
    heard = set(part.text.lower().split())

    def in_common(line: Line) -> int:
        return len(heard & set(line.words.split()))

    others = [in_common(other.line) for other in parts if other is not part]
    return in_common(part.line) > max([0, *others])


async def play(target: Target, key: Key) -> list[Part]:
    """Both devices connect, and speak at the same time. Prints all that arrives, as it does.

    :raises DemoFailed: a device is not let in, or not answered with words
    """
    began_at = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        links = [await stack.enter_async_context(_connected(target, key, line)) for line in LINES]
        inboxes = [await stack.enter_async_context(collecting(link)) for _, link in links]
        printing = asyncio.create_task(_print_arrivals(inboxes, began_at))
        try:
            async with asyncio.timeout(ANSWER_PATIENCE_S):
                speaking = (_speak(target, device, line) for (device, _), line in zip(links, LINES, strict=True))
                answers = await asyncio.gather(*speaking)
            sessions = [str(answer["session_id"]) for answer in answers]
            for inbox, session_id in zip(inboxes, sessions, strict=True):
                await _await_final(inbox, session_id)
            await asyncio.sleep(QUIET_S)
        except TimeoutError as error:
            raise DemoFailed(f"no answer within {ANSWER_PATIENCE_S:.0f} s") from error
        finally:
            printing.cancel()
            await asyncio.wait([printing])
    return [
        Part(line, session_id, str(answer["text"]), tuple(inbox.arrivals))
        for line, session_id, answer, inbox in zip(LINES, sessions, answers, inboxes, strict=True)
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
    """Upload the line, and return the answer's JSON object."""
    try:
        spoken = await post_speech(target, device.token, load(line), lambda sent_s: None)
    except NotHttpError as error:
        raise DemoFailed(f"{line.device_id}: {error}") from error
    if problem := judge_audio(spoken.response):
        raise DemoFailed(f"{line.device_id}: {problem}")
    answer = json_value(spoken.response.body)
    assert isinstance(answer, dict)  # it has been judged
    return answer


def load(line: Line) -> Recording:
    """The recording of a line."""
    return parse_wav((HERE / line.file).read_bytes())


async def _await_final(inbox: Inbox, session_id: str) -> None:
    """Until it is there, or the time is over; what is missing is found later."""

    def is_there() -> bool:
        return any(item.session_id == session_id and item.fields.get("final") is True for item in inbox.arrivals)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FINAL_PATIENCE_S):
            await inbox.until(is_there)


async def _print_arrivals(inboxes: Sequence[Inbox], began_at: float) -> None:
    """Each message in a line, when it comes."""

    async def follow(line: Line, inbox: Inbox) -> None:
        printed: list[Arrival] = []
        while inbox.lost is None:
            await inbox.until(lambda: len(inbox.arrivals) > len(printed))
            for item in inbox.arrivals[len(printed) :]:
                kind = "      " if item.is_hypothesis else "final "
                click.echo(f"  {item.at - began_at:5.1f} s  {line.device_id} <- {kind}{item.text}")
                printed.append(item)

    await asyncio.gather(*(follow(line, inbox) for line, inbox in zip(LINES, inboxes, strict=True)))


async def perform() -> list[str]:
    """Start a gateway, let the devices play, and stop it. Returns what is not as it should be.

    :raises DemoFailed: it did not come to an end
    """
    secret = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory(prefix="cocoa-demo-") as folder:
        gateway = GatewayProcess(Path(folder), secret, ["--speech", ENGINE, "--speech-workers", str(len(LINES))])
        try:
            await gateway.start()
            click.echo(f"Gateway on http://127.0.0.1:{gateway.port}, its speech engine is {ENGINE}")
            await gateway.await_ready()
            for line in LINES:
                click.echo(f'{line.device_id} says "{line.words}" ({load(line).duration_s:.1f} s, demo/{line.file})')
            click.echo("What arrives, and where:")
            parts = await play(Target("127.0.0.1", gateway.port, secure=False), Key("the demonstration", secret))
        except (GatewayFailed, OSError) as error:
            raise DemoFailed(str(error)) from error
        finally:
            await gateway.stop()
    click.echo("What each device received, as it stood on the wire:")
    for part in parts:
        for item in part.arrivals:
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
        click.echo(f"NOT as it should be: {line}")
    if not found:
        click.echo("As it should be: each device got its own words, and nothing else.")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
