"""The commands of docs/night.rst are as they are printed there, against a gateway in which all of that has happened."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

import click
import pytest

from cli.commands import cocoa
from testing.raw_device import TEXT
from testing.waiting import eventually

from ..harness import Harness
from .conftest import StartAdmin
from .operator import run
from .test_quarantine import reject

pytestmark = pytest.mark.gen_test(timeout=60)
PAGE: Final = (Path(__file__).parents[2] / "docs" / "night.rst").read_text(encoding="utf-8")


class Shown(NamedTuple):
    """A command of the page, with the output below it."""

    command: str
    output: tuple[str, ...]

    @property
    def headers(self) -> list[list[str]]:
        """The headers of its tables."""
        lines = [line.split() for line in self.output]
        return [line for line in lines if line and all(re.fullmatch("[A-Z]+", word) for word in line)]


def shown() -> list[Shown]:
    found: list[Shown] = []
    for block in re.findall(r"::\n\n((?:(?: {4}.*)?\n)+)", PAGE):
        for part in re.split(r"^ {4}\$ ", block, flags=re.MULTILINE)[1:]:
            command, *output = part.splitlines()
            found.append(Shown(command, tuple(line[4:] for line in output if line)))
    return found


def test_every_command_of_the_page_exists_with_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fixed.json", "record.json"):
        (tmp_path / name).touch()
    named = re.findall(r"(?:``|\$ | {4})(cocoa (?:admin|mint-token) [^`|>\n]+)", re.sub(r"(?<=\w)\n(?=\w)", " ", PAGE))
    assert len(named) > 20
    for line in named:
        _, *words = shlex.split(line)
        context, command = click.Context(cocoa), click.Group()
        while words and isinstance(command, click.Group):
            found = (cocoa if command.name is None else command).get_command(context, words[0])
            assert found is not None, line
            command, words = found, words[1:]  # type: ignore[assignment]  # a group's command
        if words:
            command.make_context(command.name, words).close()


async def test_the_page_shows_what_the_commands_print(
    start_admin: StartAdmin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "record.json").write_text('{"to":{"group":"kitchen"},"except":{"devices":["doll-3"]},"ttl":0}')
    gateway = await start_admin(mailbox="memory://", server_name="a")
    await plant(gateway)
    commands = [
        each for each in shown() if not each.command.startswith(("cat ", "cocoa admin tail", "cocoa admin top"))
    ]
    assert len(commands) > 20
    for each in commands:
        line, _, file = each.command.partition(" > ")
        if not line.startswith("cocoa admin "):
            await asyncio.to_thread(subprocess.run, line, shell=True, check=True, cwd=tmp_path)
            continue
        result = await run(gateway, *shlex.split(line)[2:])
        assert result.exit_code == (1 if each.output[:1] and each.output[0].startswith("Error: ") else 0), result.output
        if file:
            (tmp_path / file).write_text(result.stdout)
        printed = [row.split() for row in result.output.splitlines()]
        assert [header for header in each.headers if header not in printed] == [], result.output


async def plant(gateway: Harness) -> None:
    """The events before the first question."""
    doll = await gateway.upgrade(gateway.token("doll-1", groups=["kitchen"]))
    for device_id in ("doll-3", "doll-4", "doll-5"):
        await (await gateway.upgrade(gateway.token(device_id, groups=["kitchen"]))).end()
    await gateway.upgrade(gateway.token("doll-2", groups=["kitchen"]))
    await eventually(lambda: len(gateway.gateway.hub) == 2)
    await gateway.publish("doll-1", "Good night")
    await gateway.publish("doll-5", "Good night", id="n-17")
    await reject(gateway, b'{"devise_id":"doll-2","text":"Good morning"}')
    await gateway.publish("doll-2", "Are you there?", id="check-1")
    await gateway.publish("", "Dinner", id="dinner-1", to={"group": "kitchen"})
    while b"Dinner" not in (await doll.read_until(TEXT)).payload:
        pass
