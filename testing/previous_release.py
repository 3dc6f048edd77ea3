"""The previous release, as a program that runs beside this one.

Before the first tag, that is the last commit without canaries and without the console.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
ADDED: Final = "cocoa_tornado/canaries.py"
"""A file that the previous release does not have."""
PROGRAM: Final = "import sys; sys.argv[0] = 'cocoa'; from cli.main import main; main()"


class NoHistory(Exception):
    """There is no such commit here: this is not a clone of the repository, or a shallow one."""


def find_commit() -> str:
    """The last commit of the previous release. Raises NoHistory."""
    found = _git("log", "--diff-filter=A", "--format=%P", "--", ADDED).decode().split()
    if len(found) != 1:
        raise NoHistory(f"the commit that adds {ADDED} is not in this repository")
    return found[0]


def check_out(commit: str, folder: Path) -> None:
    """Write the files of a commit into a folder. Raises NoHistory."""
    with tarfile.open(fileobj=BytesIO(_git("archive", commit))) as archive:
        archive.extractall(folder, filter="data")


def command() -> list[str]:
    """What runs ``cocoa`` from the folder that ``PYTHONPATH`` names, with the libraries of this process."""
    return [sys.executable, "-P", "-c", PROGRAM]


def _git(*arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=True)
    except FileNotFoundError as error:
        raise NoHistory("git is not installed") from error
    except subprocess.CalledProcessError as error:
        raise NoHistory(error.stderr.decode(errors="replace").strip()) from error
    return done.stdout
