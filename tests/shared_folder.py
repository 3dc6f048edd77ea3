"""A folder that all processes of a test run share, whether pytest-xdist is at work or not."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

SHARED_FOLDER = pytest.StashKey[Path]()


class SharedFolder:
    """The plugin; ``conftest.py`` registers it. The process that began the run makes the folder and removes it.

    A server that a test process leaves in it, with its process id in a file ``pid``, is killed at the end of the run:
    one that others still use, or whose process has crashed.
    """

    def pytest_configure(self, config: pytest.Config) -> None:
        # What a worker is given by its controller; the attribute is pytest-xdist's documented way.
        given: dict[str, Any] | None = getattr(config, "workerinput", None)
        self._is_owner = given is None
        self._folder = Path(given["shared_folder"] if given else tempfile.mkdtemp(prefix="cocoa-tests-"))
        config.stash[SHARED_FOLDER] = self._folder

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """The controller gives it to a worker."""
        node.workerinput["shared_folder"] = str(self._folder)

    def pytest_unconfigure(self) -> None:
        if not self._is_owner:
            return
        for pid in self._folder.glob("*/pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):  # it has ended; it was being started
                os.kill(int(pid.read_text()), signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)
