"""The examples as a user would run them: which toolchain each needs, how it is built, and what it prints."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from testing.locking import alone
from testing.waiting import eventually

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
_BUILD_PATIENCE_S = 300.0
_MAX_LINE_BYTES = 2 * 1024 * 1024
# What a user's own build leaves in an example's folder.
_MADE = frozenset({"node_modules", "package-lock.json", "target"})


class Running:
    """A program of a test's.

    :ivar lines: what it has written so far, on either stream
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._line(line.decode(errors="replace").rstrip())

    def _line(self, line: str) -> None:
        self.lines.append(line)

    def all_of(self, word: str) -> list[str]:
        """What stands behind the word in its lines."""
        return [line.removeprefix(word).lstrip(": ") for line in self.lines if line.startswith(word)]

    async def prints(self, word: str, count: int) -> list[str]:
        """As :meth:`all_of`, once there are ``count``; fails with all its lines if they do not come."""
        try:
            await eventually(lambda: len(self.all_of(word)) >= count)
        except AssertionError:
            pytest.fail(f"no {count} lines of {word!r}:\n" + "\n".join(self.lines))
        return self.all_of(word)

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()
        await self._reading

    async def succeeds(self) -> None:
        """Wait for its end; fails unless its exit status is 0."""
        status = await asyncio.wait_for(self._process.wait(), 60.0)
        await self._reading
        assert status == 0, "\n".join(self.lines)


async def start(command: list[str], environment: dict[str, str], kind: type[Running] = Running) -> Running:
    process = await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        limit=_MAX_LINE_BYTES,
    )
    return kind(process)


@dataclass(frozen=True)
class Program:
    """An example.

    :ivar tools: programs without which it cannot run; its test is then skipped
    :ivar build: makes the command in a folder, given the example's; takes no time where that is done already
    """

    name: str
    build: Callable[[], list[str]]
    tools: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return self.name

    def command(self) -> list[str]:
        """Skips the test where a tool is missing, which it is not in CI."""
        for tool in self.tools:
            if shutil.which(tool) is None:
                pytest.skip(f"there is no {tool} on this machine")
        return self.build()


def python(script: str) -> Callable[[], list[str]]:
    return lambda: [sys.executable, str(EXAMPLES / script)]


def in_ci_or_nightly(programs: Sequence[Program]) -> list[Any]:
    """The programs as parameters of a test. Go's are built at night only: on a clean machine that takes a minute."""
    return [pytest.param(each, marks=pytest.mark.nightly) if each.name == "go" else each for each in programs]


def go(folder: str) -> Callable[[], list[str]]:
    def build() -> list[str]:
        binary = _cache() / f"{folder.replace('/', '-')}.bin"
        with alone(binary.with_suffix(".lock")):
            # Each time: the compiler's own cache knows best what has changed. Without optimization and cgo a build from
            # an empty cache, standard library included, takes 50 s of processor time for both programs instead of 85 s.
            _make(["go", "build", "-gcflags=all=-N -l", "-o", str(binary), "."], EXAMPLES / folder, CGO_ENABLED="0")
        return [str(binary)]

    return build


def node(folder: str, script: str) -> Callable[[], list[str]]:
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--omit=optional"]
    return lambda: ["node", str(_built(folder, command) / script)]


def maven(folder: str, main: str) -> Callable[[], list[str]]:
    def build() -> list[str]:
        target = _built(folder, ["mvn", "-q", "-B", "compile", "dependency:copy-dependencies"]) / "target"
        quick = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return ["java", *quick, "-cp", f"{target / 'classes'}:{target / 'dependency'}/*", main]

    return build


def _built(folder: str, command: list[str]) -> Path:
    """A copy of the example's folder in which the command has succeeded, named after what is in it."""
    source = EXAMPLES / folder
    digest = hashlib.sha256(" ".join(command).encode())
    for path in sorted(source.rglob("*")):
        if path.is_file() and _MADE.isdisjoint(path.relative_to(source).parts):
            digest.update(path.read_bytes())
    copy = _cache() / f"{folder.replace('/', '-')}-{digest.hexdigest()[:16]}"
    with alone(copy.with_suffix(".lock")):
        if not (copy / "complete").exists():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*_MADE))
            _make(command, copy)
            (copy / "complete").touch()
    return copy


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cocoa-tornado" / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _make(command: list[str], folder: Path, **environment: str) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_BUILD_PATIENCE_S,
    )
    assert done.returncode == 0, f"{' '.join(command)} in {folder}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
