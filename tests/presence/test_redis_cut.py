from __future__ import annotations

import math

import pytest

from cocoa_tornado.presence.grants import Grant, Lease, SlotLimits
from cocoa_tornado.presence.membership import Cut, Timing
from cocoa_tornado.presence.redis import RedisPresence
from cocoa_tornado.relay.redis import RedisRelay
from cocoa_tornado.rules.claims import Generation

from .stands import Connections

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.mark.gen_test
async def test_a_cut_spares_the_connections_that_have_a_lease() -> None:
    """In strict mode, the lease of the last term ends while others were granted in this one."""
    presence = RedisPresence(NOWHERE, SlotLimits, RedisRelay(NOWHERE, lambda: 50.0), Timing(), clock=lambda: 50.0)
    connections = Connections()
    connections.presence, presence._incumbents = presence, connections
    over, valid = Lease("a1", -math.inf), Lease("a2")
    for number, lease in enumerate((over, valid), 1):
        presence._slots.server = lease.server
        claim = presence._slots.claim_free(f"d{number}")
        assert claim is not None
        grant = Grant(f"d{number}", claim, Generation(number, 1), lease)
        presence._slots.lease = lease
        presence._slots.reserve(grant)
        presence._slots.register(grant, 50.0)
        connections.open.append(grant)
    presence._member._do(Cut())
    assert connections.lost == [over]
