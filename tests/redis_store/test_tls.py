"""Everything that is in Redis also works over TLS (``rediss://``)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cocoa_tornado.mailboxes.port import Entry
from cocoa_tornado.mailboxes.redis import RedisMailbox
from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.port import PresenceState
from cocoa_tornado.presence.redis import RedisPresence
from cocoa_tornado.relay.messages import WakeUp
from cocoa_tornado.relay.port import Fate
from cocoa_tornado.relay.redis import RedisRelay
from cocoa_tornado.rules.box import BoxLimits
from testing.certificates import write_certificate
from testing.ports import ReservedPort
from testing.redis_server import RedisServer
from testing.waiting import eventually

from ..presence.redis_stand import settle
from ..presence.stands import Server

pytestmark = [pytest.mark.redis, pytest.mark.gen_test(timeout=60)]


async def test_presence_the_relay_and_the_mailbox_work_over_tls(
    own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, reserved = write_certificate(tmp_path), ReservedPort()
    files = {"tls_cert_file": certificate.cert, "tls_key_file": certificate.key, "tls_ca_cert_file": certificate.cert}
    try:
        own_redis.start(
            tls_port=str(reserved.number), tls_auth_clients="no", **{name: str(path) for name, path in files.items()}
        )
    except RuntimeError as error:
        if "Bad directive" not in str(error):
            raise
        pytest.skip("this redis-server is built without TLS")
    settle(own_redis)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.cert))
    url = f"rediss://localhost:{reserved.number}/0"
    relay, mailbox = RedisRelay(url, time.monotonic), RedisMailbox(url, BoxLimits())
    server = Server(RedisPresence(url, SlotLimits, relay, clock=time.monotonic))
    woken: list[WakeUp] = []
    relay.handle(WakeUp, lambda sender, wake_up: woken.append(wake_up))
    try:
        await mailbox.start()
        await eventually(lambda: server.presence.status().state is PresenceState.READY)
        grant = await server.connections.connect("doll")
        assert list(await server.presence.holders(["doll"])) == ["doll"]
        assert await relay.send(relay.server, WakeUp(("doll",))) is Fate.ACCEPTED
        await eventually(lambda: bool(woken))
        assert await mailbox.append([Entry("doll", b"x" * 300_000, 1, "results/0", 1)]) == [1]  # several TLS records
        server.connections.end(grant)
    finally:
        await mailbox.close(1.0)
        await server.presence.close(1.0)
        await relay.close(1.0)
        reserved.close()
