"""Ctrl-C at each moment of a command."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
wanted, how, *sys.argv[1:] = sys.argv[1:]
signal.signal(signal.SIGINT, signal.SIG_IGN if how == "ignored" else signal.default_int_handler)
from cli.main import main
main()
"""


def interrupted(module: str, *arguments: str, how: str = "handled") -> subprocess.CompletedProcess[bytes]:
    """Run a command that gets SIGINT when it begins to import a module."""
    command = [sys.executable, "-c", PROGRAM, module, how, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("cli.signals", "mint-token"),
        ("cli.commands", "mint-token"),
        ("click", "mint-token"),
        ("cli.mint_token", "mint-token"),
        ("cli.probe_device", "probe-device"),
        ("cli.admin", "admin"),
    ],
)
def test_a_command_that_is_interrupted_while_it_is_imported_ends_without_a_traceback(module: str, command: str) -> None:
    done = interrupted(module, command, "--help")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_an_interrupt_that_the_parent_process_ignores_is_ignored() -> None:
    done = interrupted("cli.commands", "--version", how="ignored")
    assert (done.returncode, done.stderr) == (0, b"")


def test_after_the_imports_an_interrupt_is_one_line_and_status_130() -> None:
    done = interrupted("cocoa_tornado.identity.devkey", "mint-token", "--device-id", "doll")
    assert (done.returncode, done.stdout, done.stderr.split()) == (130, b"", [b"Interrupted"])
