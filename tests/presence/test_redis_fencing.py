from __future__ import annotations

import logging
from typing import Any

import pytest

from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.membership import Fence
from cocoa_tornado.presence.redis import RedisPresence
from cocoa_tornado.relay.redis import RedisRelay

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.mark.gen_test
@pytest.mark.logs("cocoa.presence", "server fenced", optional=True)
@pytest.mark.parametrize(("changed", "logged"), [(b"1", ["server fenced"]), (b"0", [])])
async def test_a_fence_is_logged_only_if_it_has_ended_an_epoch(
    changed: bytes, logged: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another server may have been first, or a later beat."""
    presence = RedisPresence(NOWHERE, SlotLimits, RedisRelay(NOWHERE, lambda: 50.0), clock=lambda: 50.0)

    async def exchange(*args: Any) -> list[Any]:
        return [[b"done", changed]]

    monkeypatch.setattr(presence._link, "_exchange", exchange)
    with caplog.at_level(logging.INFO, "cocoa.presence"):
        await presence._member._send(Fence("1:run", "a1", 7))
    assert [record.getMessage() for record in caplog.records] == logged
