"""The operators' command line against a gateway of the test's own loop."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
import pytest
from click.testing import CliRunner, Result

from ..harness import Harness
from .conftest import admin_token

main: click.Command = importlib.import_module("cli.commands").cocoa
COCOA: Final = str(Path(sys.executable).with_name("cocoa"))
NO_ENVIRONMENT: Mapping[str, str | None] = {
    "COCOA_ADMIN_URL": None,
    "COCOA_ADMIN_TOKEN": None,
    "COCOA_DATA_DIR": None,
    "NO_COLOR": None,
    "TERM": "xterm",
}

COMMANDS: Final = (
    ("devices",),
    ("device", "doll"),
    ("kick", "doll"),
    ("block", "doll"),
    ("unblock", "doll"),
    ("empty", "doll", "--yes"),
    ("send", "--device", "doll"),
    ("trace", "m1"),
    ("explain", "--device", "doll"),
    ("quarantine",),
    ("quarantine", "0/0"),
    ("requeue", "0/0"),
)
commands = pytest.mark.parametrize("command", COMMANDS, ids=" ".join)


def invoke(*arguments: str, env: Mapping[str, str | None] | None = None, **options: Any) -> Result:
    """Run ``cocoa admin`` with these arguments, in this thread."""
    return CliRunner().invoke(main, ["admin", *arguments], env={**NO_ENVIRONMENT, **(env or {})}, **options)


async def run(gateway: Harness, *arguments: str, token: str | None = None, **options: Any) -> Result:
    """Run it against a gateway, as an operator with every scope unless a token is given, beside the loop."""
    env = {"COCOA_ADMIN_URL": f"http://127.0.0.1:{gateway.port}", "COCOA_ADMIN_TOKEN": token or admin_token()}
    env |= options.pop("env", {})
    return await asyncio.to_thread(invoke, *arguments, env=env, **options)


async def done(gateway: Harness, *arguments: str, **options: Any) -> list[str]:
    """Run it, and return the lines of its output, which succeeds without a word on standard error."""
    result = await run(gateway, *arguments, **options)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout.splitlines()


async def json_of(gateway: Harness, *arguments: str, **options: Any) -> Any:
    """Run it with ``--json``, and return the JSON of its one line of output."""
    lines = await done(gateway, *arguments, "--json", **options)
    assert len(lines) == 1
    return json.loads(lines[0])


def fails(result: Result, problem: str, status: int = 1) -> None:
    """It printed nothing but one line, and that on standard error."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: ")
    assert problem in result.stderr, result.stderr


def words(line: str) -> list[str]:
    """The cells of a line of a table, if none of them has two blanks."""
    return [cell.strip() for cell in line.split("  ") if cell.strip()]
