"""Gateways that a test starts with settings of its own."""

from __future__ import annotations

from typing import Any

import pytest

from ..harness import Harness


class Running:
    """Gateways of one test; all of them are stopped at its end."""

    def __init__(self) -> None:
        self.started: list[Harness] = []

    async def start(self, **settings: Any) -> Harness:
        harness = await Harness.start(**settings)
        self.started.append(harness)
        return harness


def messages(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.getMessage() == message]
