"""Contract section 2: everything that is decided before the upgrade."""

from __future__ import annotations

import asyncio
import json
import logging
import time

import pytest
import websockets

from cocoa_tornado.presence.grants import Grant
from cocoa_tornado.rules.identity import DeviceIdentity
from cocoa_tornado.web.device_handler import DeviceHandler
from testing.raw_device import CLOSE, PATIENCE_S, PING, PONG, TEXT, UPGRADE, Response, frame
from testing.waiting import eventually

from ..harness import Harness
from .conftest import StartGateway


async def handshake(gateway: Harness, target: str, headers: dict[str, str] | None = None) -> Response:
    return await gateway.http("GET", target, UPGRADE | (headers or {}))


def upgrade_request(token: str) -> bytes:
    lines = [f"GET /ws?token={token} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in UPGRADE.items()]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.gen_test
async def test_a_token_in_the_query_opens_a_websocket_and_registers_the_device(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    assert device.response.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert "sec-websocket-protocol" not in device.response.headers
    assert "sec-websocket-extensions" not in device.response.headers
    assert gateway.gateway.hub.is_device_connected("doll")


@pytest.mark.gen_test
async def test_a_token_with_as_many_groups_as_there_may_be_opens_a_websocket(gateway: Harness) -> None:
    groups = [f"{number:02}".ljust(128, "g") for number in range(64)]
    device = await gateway.upgrade(gateway.token("d" * 128, groups=groups))
    assert device.response.status == 101


@pytest.mark.gen_test
async def test_a_token_in_the_authorization_header_opens_a_websocket(gateway: Harness) -> None:
    response = await handshake(gateway, "/ws", {"Authorization": f"Bearer {gateway.token()}"})
    assert response.status == 101


@pytest.mark.gen_test
async def test_a_token_in_the_subprotocol_pair_is_answered_with_bearer(gateway: Harness) -> None:
    response = await handshake(gateway, "/ws", {"Sec-WebSocket-Protocol": f"bearer, {gateway.token()}"})
    assert response.status == 101
    assert response.headers["sec-websocket-protocol"] == "bearer"


@pytest.mark.gen_test
async def test_other_subprotocols_are_no_reason_to_refuse_and_none_is_selected(gateway: Harness) -> None:
    response = await handshake(gateway, f"/ws?token={gateway.token()}", {"Sec-WebSocket-Protocol": "chat, mqtt"})
    assert response.status == 101
    assert "sec-websocket-protocol" not in response.headers


@pytest.mark.gen_test
async def test_the_query_comes_before_the_header(gateway: Harness) -> None:
    response = await handshake(gateway, f"/ws?token={gateway.token()}", {"Authorization": "Bearer rubbish"})
    assert response.status == 101


@pytest.mark.gen_test
async def test_no_token_is_a_401_with_its_exact_body(gateway: Harness) -> None:
    for target in ("/ws", "/ws?token="):
        response = await handshake(gateway, target)
        assert (response.status, response.body) == (401, b'{"message":"Missing JWT token"}')
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.gen_test
async def test_a_bad_token_is_a_401_with_its_exact_body(gateway: Harness) -> None:
    good = gateway.token()
    expired = gateway.token(lifetime_s=-3600)
    foreign = gateway.token(secret="another secret of thirty-two bytes!!")
    for token in ("rubbish", good[:-3], f"{good}x", expired, foreign, "%00%FF", "x" * 12_000):
        response = await handshake(gateway, f"/ws?token={token}")
        assert (response.status, response.body) == (401, b'{"message":"Invalid JWT token"}')
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.gen_test
async def test_bad_claims_are_a_401_with_their_exact_body(gateway: Harness) -> None:
    for claims in ({"device_id": ""}, {"device_id": 7}, {"user_id": None}, {"device_version": 1}, {"iss": "someone"}):
        response = await handshake(gateway, f"/ws?token={gateway.token(**claims)}")
        assert (response.status, response.body) == (401, b'{"message":"Invalid JWT claims"}')


@pytest.mark.gen_test
async def test_a_foreign_browser_origin_is_a_403(gateway: Harness) -> None:
    response = await handshake(gateway, f"/ws?token={gateway.token()}", {"Origin": "https://evil.example"})
    assert response.status == 403
    assert list(json.loads(response.body)) == ["message"]
    assert gateway.gateway.presence.slots_taken == 0


@pytest.mark.gen_test
async def test_the_servers_own_host_passes_with_and_without_a_scheme(gateway: Harness) -> None:
    for number, origin in enumerate(["http://localhost", "localhost", "https://localhost:9"]):
        token = gateway.token(f"doll-{number}")
        assert (await handshake(gateway, f"/ws?token={token}", {"Origin": origin})).status == 101


@pytest.mark.gen_test
async def test_the_allow_list_passes(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(allowed_origins=("https://app.example",))
    response = await handshake(gateway, f"/ws?token={gateway.token()}", {"Origin": "https://app.example"})
    assert response.status == 101


@pytest.mark.gen_test
async def test_an_origin_of_firmwares_own_passes_and_two_of_them_do_not(gateway: Harness) -> None:
    target = f"/ws?token={gateway.token()}"
    assert (await handshake(gateway, target, {"Origin": "file://"})).status == 101
    for origin in ("null", "https://github.com/gilmaimon/TinyWebsockets", "file://, file://"):
        response = await handshake(gateway, target, {"Origin": origin})
        assert (response.status, response.body) == (403, b'{"message":"Origin not allowed"}')
    device = await gateway.dial()
    device.writer.write(
        upgrade_request(gateway.token()).replace(b"\r\n\r\n", b"\r\nOrigin: a://b\r\nOrigin: a://b\r\n\r\n")
    )
    assert (await device.read_response()).status == 403


@pytest.mark.gen_test
async def test_firmware_whose_origin_has_a_path_passes_where_that_is_listed(start_gateway: StartGateway) -> None:
    origin = "https://github.com/gilmaimon/TinyWebsockets"
    gateway = await start_gateway(allowed_origins=(origin,))
    assert (await handshake(gateway, f"/ws?token={gateway.token()}", {"Origin": origin})).status == 101


# -- a plain GET


@pytest.mark.gen_test
async def test_a_plain_get_with_nothing_else_wrong_is_a_426_and_takes_no_slot(gateway: Harness) -> None:
    response = await gateway.http("GET", f"/ws?token={gateway.token()}")
    assert (response.status, response.body) == (426, b'{"message":"Upgrade Required"}')
    assert response.headers["upgrade"] == "websocket"
    assert gateway.gateway.presence.slots_taken == 0


@pytest.mark.gen_test
async def test_a_plain_get_is_told_what_an_upgrade_would_be_refused_for(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_connections=2)
    token = gateway.token("doll")
    bearer = {"Authorization": f"Bearer {token}"}
    for target, headers, status, message in (
        ("/ws", {}, 401, "Missing JWT token"),
        ("/ws?token=x", {}, 401, "Invalid JWT token"),
        (f"/ws?token={gateway.token(user_id=None)}", {}, 401, "Invalid JWT claims"),
        ("/ws", bearer | {"Origin": "https://evil.example"}, 403, "Origin not allowed"),
        ("/ws?after=x", bearer, 400, "Unknown cursor"),
    ):
        response = await gateway.http("GET", target, headers)
        assert (response.status, json.loads(response.body)) == (status, {"message": message})
        assert (response.headers.get("www-authenticate") == "Bearer") is (status == 401)
    await gateway.raw("doll")
    response = await gateway.http("GET", "/ws", bearer)
    assert (response.status, json.loads(response.body)) == (409, {"message": "Device already connected"})
    assert int(response.headers["retry-after"]) > 0
    await gateway.raw("other")
    response = await gateway.http("GET", f"/ws?token={gateway.token('third')}")
    assert (response.status, json.loads(response.body)) == (503, {"message": "Too many connections"})
    gateway.gateway.presence.drain()
    response = await gateway.http("GET", "/ws")
    assert (response.status, json.loads(response.body)) == (503, {"message": "Gateway is draining"})
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.gen_test
async def test_a_plain_get_challenges_nobody_and_counts_as_no_handshake(gateway: Harness) -> None:
    await gateway.raw("doll")  # it answers no ping
    for _ in range(3):
        assert (await gateway.http("GET", f"/ws?token={gateway.token('doll')}")).status == 409
    assert gateway.gateway.presence.counters.challenges == 0
    assert gateway.gateway.counters.handshakes == {"accepted": 1, "not_websocket": 3}


@pytest.mark.gen_test
async def test_an_upgrade_asked_for_in_http_1_0_is_a_426(gateway: Harness) -> None:
    device = await gateway.dial()
    lines = [f"GET /ws?token={gateway.token()} HTTP/1.0", "Host: localhost", *map(": ".join, UPGRADE.items()), "", ""]
    device.writer.write("\r\n".join(lines).encode())
    assert (await device.read_response()).status == 426
    assert gateway.gateway.presence.slots_taken == 0


@pytest.mark.gen_test
async def test_another_method_is_a_405(gateway: Harness) -> None:
    response = await gateway.http("POST", "/ws", UPGRADE)
    assert response.status == 405
    assert json.loads(response.body) == {"message": "Method Not Allowed"}
    assert "GET" in response.headers["allow"]


@pytest.mark.gen_test
async def test_a_second_connection_is_a_409_before_the_upgrade_and_the_first_lives_on(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(duplicate_challenge_s=60.0)
    first = await gateway.connect("doll")
    started = time.monotonic()
    response = await handshake(gateway, f"/ws?token={gateway.token('doll')}")
    assert (response.status, response.body) == (409, b'{"message":"Device already connected"}')
    assert response.headers["retry-after"] == "5"
    assert time.monotonic() - started < 30.0  # a live incumbent answers its challenge at once
    await gateway.publish("doll", "still here")
    assert "still here" in await first.recv()
    await first.close()


@pytest.mark.gen_test
async def test_a_silent_incumbent_is_evicted_and_the_newcomer_admitted_in_the_same_request(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(duplicate_challenge_s=0.3)
    silent = await gateway.raw("doll")
    newcomer = await gateway.raw("doll")
    assert (await silent.read_until(CLOSE)).close_code == 4409
    await gateway.publish("doll", "for the newcomer")
    assert b"for the newcomer" in (await newcomer.read_until(TEXT)).payload
    assert gateway.gateway.presence.counters.evictions == 1
    assert len(gateway.gateway.hub) == 1


@pytest.mark.gen_test
async def test_of_many_newcomers_one_wins_and_there_is_one_challenge(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(duplicate_challenge_s=0.3)
    silent = await gateway.raw("doll")
    token = gateway.token("doll")
    newcomers = await asyncio.gather(*(gateway.upgrade(token) for _ in range(10)))
    assert sorted(device.response.status for device in newcomers) == [101] + [409] * 9
    assert gateway.gateway.presence.counters.challenges == 1
    pings = 0
    while (received := await silent.read_frame()).opcode != CLOSE:
        pings += received.opcode == PING
    assert pings == 1


@pytest.mark.gen_test
async def test_a_pong_keeps_the_place(gateway: Harness) -> None:
    incumbent = await gateway.raw("doll")
    newcomer = asyncio.ensure_future(gateway.upgrade(gateway.token("doll")))
    ping = await incumbent.read_until(PING)
    incumbent.send(PONG, ping.payload)
    assert (await newcomer).response.status == 409


@pytest.mark.gen_test
async def test_the_policy_reject_refuses_without_a_challenge(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(duplicate_policy="reject")
    incumbent = await gateway.raw("doll")
    assert (await handshake(gateway, f"/ws?token={gateway.token('doll')}")).status == 409
    assert gateway.gateway.presence.counters.challenges == 0
    incumbent.close()


@pytest.mark.gen_test
async def test_a_newcomer_that_vanishes_in_the_challenge_leaves_no_slot_behind(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(duplicate_challenge_s=0.4)
    presence = gateway.gateway.presence
    silent = await gateway.raw("doll")
    newcomer = await gateway.dial()
    newcomer.writer.write(upgrade_request(gateway.token("doll")))
    await silent.read_until(PING)
    newcomer.reset()
    handshakes = gateway.gateway.counters.handshakes
    await eventually(lambda: handshakes.get("vanished") == 1)
    silent.reset()
    await eventually(lambda: presence.slots_taken == 0)
    assert (await gateway.raw("doll")).response.status == 101


class SlowKeys:
    """The gateway's keys, which answer when the test says so: a JWKS that is being read."""

    def __init__(self, gateway: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.answer = asyncio.Event(), asyncio.Event()
        self.answered = 0
        self._identify = gateway.gateway.parts.live.now.keys.identify
        monkeypatch.setattr(gateway.gateway.parts.live.now.keys, "identify", self)

    async def __call__(self, token: str, now: float) -> DeviceIdentity:
        self.asked.set()
        await self.answer.wait()
        self.answered += 1
        return await self._identify(token, now)


@pytest.mark.parametrize("token_is_good", [True, False])
@pytest.mark.gen_test
async def test_a_newcomer_that_vanishes_while_the_keys_are_read_is_not_upgraded_and_challenges_nobody(
    start_gateway: StartGateway,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    token_is_good: bool,
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await start_gateway(duplicate_challenge_s=0.05)
    hub, handshakes = gateway.gateway.hub, gateway.gateway.counters.handshakes
    incumbent = await gateway.raw("doll")
    keys = SlowKeys(gateway, monkeypatch)
    newcomer = await gateway.dial()
    newcomer.writer.write(upgrade_request(gateway.token("doll") if token_is_good else "bad.token.here"))
    await asyncio.wait_for(keys.asked.wait(), PATIENCE_S)
    newcomer.reset()
    await eventually(lambda: handshakes.get("vanished") == 1)
    keys.answer.set()
    await eventually(lambda: any(vars(record).get("status") == 499 for record in caplog.records))
    assert handshakes == {"accepted": 1, "vanished": 1}
    presence = gateway.gateway.presence
    assert (presence.slots_taken, len(hub), presence.counters.challenges, keys.answered) == (1, 1, 0, 1)
    await gateway.publish("doll", "still here")
    assert (await incumbent.read_frame()).opcode == TEXT
    line = next(vars(record) for record in caplog.records if vars(record).get("status") == 499)
    assert (line["outcome"], line["levelname"]) == ("vanished", "INFO")


@pytest.mark.gen_test
async def test_a_newcomer_that_vanishes_in_the_very_turn_of_its_admission_gives_the_slot_back(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_gateway()
    presence, handshakes = gateway.gateway.presence, gateway.gateway.counters.handshakes
    vanishing: list[DeviceHandler] = []
    claim = presence.claim

    async def admit_and_vanish(device_id: str) -> Grant:
        grant = await claim(device_id)
        # It runs when the slot has been granted, and before the handler is notified.
        asyncio.get_running_loop().call_soon(vanishing[0].on_connection_close)
        return grant

    def remember(handler: DeviceHandler) -> None:
        vanishing.append(handler)

    monkeypatch.setattr(presence, "try_claim", lambda device_id: None)
    monkeypatch.setattr(presence, "claim", admit_and_vanish)
    monkeypatch.setattr(DeviceHandler, "prepare", remember)
    newcomer = await gateway.dial()
    newcomer.writer.write(upgrade_request(gateway.token("doll")))
    await eventually(lambda: handshakes.get("vanished") == 1 and presence.slots_taken == 0)
    assert handshakes == {"vanished": 1}


@pytest.mark.gen_test
async def test_an_incumbent_that_leaves_in_the_challenge_lets_the_newcomer_in_at_once(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(duplicate_challenge_s=60.0)
    incumbent = await gateway.raw("doll")
    newcomer = asyncio.ensure_future(gateway.upgrade(gateway.token("doll")))
    await incumbent.read_until(PING)
    started = time.monotonic()
    incumbent.reset()
    assert (await newcomer).response.status == 101
    assert time.monotonic() - started < 30.0  # not the whole minute of the challenge


@pytest.mark.gen_test
async def test_a_full_gateway_answers_503_with_retry_after(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_connections=1)
    first = await gateway.raw("a")
    response = await handshake(gateway, f"/ws?token={gateway.token('b')}")
    assert response.status == 503
    assert response.headers["retry-after"] == "5"
    first.close()


@pytest.mark.gen_test
async def test_without_a_lease_the_answer_is_503_and_says_when_devices_will_be_admitted_if_that_is_known(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    presence = gateway.gateway.presence
    presence.lease.end()
    for seconds, header in ((2.3, "3"), (0.1, "1"), (None, "5")):
        monkeypatch.setattr(presence, "admits_in", lambda seconds=seconds: seconds)
        response = await handshake(gateway, f"/ws?token={gateway.token('doll')}")
        assert (response.status, response.body) == (503, b'{"message":"Presence not available"}')
        assert response.headers["retry-after"] == header


@pytest.mark.gen_test
async def test_a_device_may_hold_as_many_connections_as_configured(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(connections_per_device=2)
    one, two = await gateway.connect("doll"), await gateway.connect("doll")
    await gateway.publish("doll", "hello")
    assert await one.recv() == await two.recv()
    assert (await handshake(gateway, f"/ws?token={gateway.token('doll')}")).status == 409
    await one.close()
    await two.close()


@pytest.mark.gen_test
async def test_a_cursor_without_a_mailbox_is_unknown(gateway: Harness) -> None:
    response = await handshake(gateway, f"/ws?token={gateway.token()}&after=abc")
    assert (response.status, response.body) == (400, b'{"message":"Unknown cursor"}')


@pytest.mark.gen_test
async def test_frames_sent_along_with_the_handshake_are_not_lost(gateway: Harness) -> None:
    device = await gateway.dial()
    device.writer.write(upgrade_request(gateway.token()) + frame(TEXT, b"early"))
    assert (await device.read_response()).status == 101
    await eventually(lambda: len(gateway.broker.records("device.messages")) == 1)


@pytest.mark.gen_test
async def test_a_connection_whose_token_expires_is_closed_with_4401(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(jwt_leeway_s=0.0)
    token = gateway.token(lifetime_s=1.5)
    device = await gateway.connect_with(token)
    with pytest.raises(websockets.ConnectionClosed) as closed:
        await asyncio.wait_for(device.recv(), 10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4401
