"""A gateway whose presence is in a Redis that is not there."""

from __future__ import annotations

import pytest

from testing.redis_server import RedisServer
from testing.waiting import eventually

from .harness import Harness

pytestmark = [pytest.mark.redis, pytest.mark.gen_test(timeout=60)]


@pytest.mark.logs("cocoa.presence", "presence unavailable")
@pytest.mark.logs("cocoa.relay", "relay unavailable", optional=True)
async def test_a_gateway_starts_without_redis_and_admits_nobody(own_redis: RedisServer) -> None:
    gateway = await Harness.start(presence=own_redis.url)
    refused = await gateway.upgrade(gateway.token("doll"))
    assert (refused.response.status, refused.response.body) == (503, b'{"message":"Presence not available"}')
    assert refused.response.headers["retry-after"] == "5"
    assert (await gateway.http("GET", f"/ws?token={gateway.token('doll')}")).status == 503
    ready = await gateway.http("GET", "/api/v1/ready")
    assert ready.status == 503
    assert b'"presence":{"ok":false,"state":"joining"}' in ready.body
    metrics = (await gateway.http("GET", "/metrics")).body
    assert b"cocoa_presence_ready 0.0" in metrics
    assert b"cocoa_presence_lease_age_seconds " not in metrics
    await eventually(lambda: "no connection" in gateway.gateway.presence.status().detail)
    await gateway.stop()
