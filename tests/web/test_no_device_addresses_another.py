"""No input of a device, over any route, with any token, query and headers, reaches another device."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection

from cocoa_tornado.rules.records import Record, decode
from testing.waiting import eventually

from ..harness import RESULTS, SECRET, Harness
from ..profiles import examples
from ..scripted_engine import ScriptedEngine

PUBLISH, SPEAK = "/api/v1/transcriptions", "/api/v1/audio/stream"
CLAIMS = {"groups": ["red"], "to": {"all": True}, "except": {"devices": ["doll"]}, "cocoa.to": {"device": "bear"}}

ADDRESSES = [
    *('{"device":"bear"}', '{"devices":["doll","bear"]}', '{"user":99}', '{"user":"99"}', '{"group":"red"}'),
    *('{"all":true}', '{"device":"doll"}', '{"devices":[]}', "5", '"bear"', "null", '{"all":true,"x":1}'),
]
NAMES = ["to", "\\u0074o", "except", "TO", "cocoa.to", "cocoa_to", "device_id", "device\\u005fid", "user_id", "groups"]
members = st.tuples(st.sampled_from(NAMES), st.sampled_from([*ADDRESSES, '"doll"', '{"devices":["doll"]}']))
bodies = st.builds(
    lambda before, after, odd: odd % ("{" + ",".join([*before, '"device_id":"doll"', *after]) + "}"),
    st.lists(members.map('"%s":%s'.__mod__), max_size=2),
    st.lists(members.map('"%s":%s'.__mod__), max_size=2),
    st.sampled_from(
        ["%s"] * 6 + ["[%s]", "%s %s".replace(" %s", " "), "\ufeff%s", "%s}", '{"device_id":"doll","o":%s}']
    ),
)


class Attack(NamedTuple):
    """:ivar route: one of the two paths, or how to speak over the socket"""

    route: str
    body: str
    query: list[tuple[str, str]]
    headers: dict[str, str]


header_names = ["cocoa.to", "Cocoa.Except", "To", "X-Cocoa-To", "cocoa.device_id", "X-Device-Id"]
attacks = st.builds(
    Attack,
    st.sampled_from([PUBLISH, PUBLISH, SPEAK, "text", "audio"]),
    bodies,
    st.lists(
        st.tuples(st.sampled_from(["to", "cocoa.to", "device_id", "device", "group"]), st.sampled_from(ADDRESSES))
    ),
    st.dictionaries(st.sampled_from(header_names), st.sampled_from(ADDRESSES), max_size=3),
)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


class Pairs(list[tuple[str, object]]):
    """An object, as it stands."""


def holds_address(body: str) -> bool:
    """As a reader sees it that shares no code with the gateway's."""
    try:
        value = json.loads(body, object_pairs_hook=Pairs)
    except ValueError:
        return False
    return isinstance(value, Pairs) and any(name in ("to", "except") and found is not None for name, found in value)


async def carry_out(gateway: Harness, doll: ClientConnection, token: str, attack: Attack) -> None:
    body = attack.body.encode()
    if attack.route == "text":
        await doll.send(attack.body)
    elif attack.route == "audio":
        await doll.send(body)
        await doll.send('{"type":"audio_end"}')
    else:
        query = "".join(f"&{name}={quote(value)}" for name, value in attack.query)
        headers = {"Content-Type": "application/octet-stream", "Authorization": f"Bearer {token}"}
        response = await gateway.http("POST", f"{attack.route}?interim=false{query}", headers | attack.headers, body)
        if attack.route == PUBLISH and holds_address(attack.body):
            assert (response.status, response.body) == (403, b"""{"message":"Devices can't address others"}""")
        elif attack.route == PUBLISH:
            assert response.status in (202, 400, 403)


def test_no_device_addresses_another_whatever_it_says(runner: asyncio.Runner) -> None:
    engine = ScriptedEngine()
    gateway = runner.run(Harness.start(engine=engine, inbound_rate=0.0, access_log=False))
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: runner.run(gateway.stop()))
        token = gateway.token("doll", 3600, SECRET, **CLAIMS)
        bear = runner.run(gateway.connect_with(gateway.token("bear", groups=["red"])))
        doll = runner.run(gateway.connect_with(token))

        @examples(150)
        @given(attacks)
        @example(Attack(PUBLISH, '{"device_id":"doll","to":{"device":"doll"}}', [], {}))
        @example(
            Attack(PUBLISH, '{"device_id":"doll","to":null}', [("to", '{"all":true}')], {"cocoa.to": '{"all":true}'})
        )
        @example(Attack(SPEAK, '{"to":{"all":true},"device_id":"bear"}', [("device_id", "bear")], {"cocoa.to": "{}"}))
        @example(Attack("audio", '","to":{"all":true},"x":"', [], {}))
        def check(attack: Attack) -> None:
            runner.run(carry_out(gateway, doll, token, attack))

        check()
        runner.run(eventually(lambda: all(stream.finished or stream.cancelled for stream in engine.streams)))
        runner.run(gateway.publish("bear", "the first"))
        assert json.loads(runner.run(asyncio.wait_for(bear.recv(), 30)))["text"] == "the first"
        published = [record for record in gateway.broker.records(RESULTS) if b"the first" not in (record.value or b"")]
        for record in published:
            found = decode(record.key, record.value, record.timestamp_ms, tuple(record.headers.items()))
            assert isinstance(found, Record)
            assert found.address == "doll"
            assert record.headers == {}
        assert published
        assert any(stream.finished for stream in engine.streams)
