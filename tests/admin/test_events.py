"""Operators watch what happens to devices: on one server and on several, for as long as they may and no longer."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from cocoa_tornado.admin.event_handlers import EventsHandler
from cocoa_tornado.admin.watchers import MAX_WATCHERS
from testing.waiting import eventually

from ..harness import Harness, Neighbors
from .conftest import StartAdmin, admin_token, ask
from .streams import EventStream

pytestmark = pytest.mark.gen_test(timeout=60)
Two = tuple[Harness, Harness]


async def test_a_watcher_sees_what_happens_to_connections(start_admin: StartAdmin) -> None:
    gateway = await start_admin(server_name="here", duplicate_challenge_s=30.0)
    stream = await EventStream.open(gateway)
    headers = stream.response.headers
    assert headers["content-type"] == "text/event-stream"
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")
    device = await gateway.connect_with(gateway.token("doll", user_id="ann"))
    assert (await gateway.upgrade(gateway.token("doll"))).response.status == 409
    await device.close(4000)
    events = await stream.some(4)
    assert [event.pop("at")[-1] for event in events] == ["Z"] * 4
    who = {"server": "here", "device_id": "doll"}
    assert events == [
        {"event": "connected", **who, "user_id": "ann", "code": 101},
        {"event": "challenged", **who, "user_id": "ann", "code": None},
        {"event": "refused", **who, "user_id": 99, "code": 409},
        {"event": "closed", **who, "user_id": "ann", "code": 4000},
    ]
    await stream.end()


async def test_a_watcher_sees_each_message_that_a_socket_has_taken(start_admin: StartAdmin) -> None:
    gateway = await start_admin(server_name="here")
    await gateway.raw("doll")
    full, blind = await EventStream.open(gateway), await EventStream.open(gateway, token=admin_token("admin:read"))
    await gateway.publish("doll", "hello", id="m1", priority="high")
    await gateway.publish("doll", "söme", id=7)
    for stream in (full, blind):
        first, second = await stream.some(2)
        for event in (first, second):
            assert event.pop("at")[:2] == "20"
            assert event.pop("age_ms") >= 0
            text = event.pop("text", None)
            assert (text is not None) is (stream is full)
            if text is not None:
                assert json.loads(text)["text"] == ("hello" if event is first else "söme")
                assert len(text.encode()) == event["length"]
            assert event.pop("length") > 50
        who = {"event": "message", "server": "here", "device_id": "doll", "user_id": 99, "interim": False}
        assert first == {**who, "id": "m1", "priority": "high"}
        assert second == {**who, "id": None, "priority": "normal"}
        await stream.end()


async def test_with_a_mailbox_messages_from_the_box_are_seen_too(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    stream = await EventStream.open(gateway, "?device=doll")
    device = await gateway.connect("doll")
    await device.close()
    await stream.some(2)
    await gateway.publish("doll", "one", id="m1")
    await gateway.publish("doll", "two", id="m2", priority="low")
    device = await gateway.connect("doll")
    connected, *messages = await stream.some(3)
    assert connected["event"] == "connected"
    assert [(message["id"], message["priority"]) for message in messages] == [("m1", "normal"), ("m2", "low")]
    assert all(message["age_ms"] >= 0 for message in messages)
    assert gateway.gateway.counters.latency.count == 0  # how long they were in the box is no latency
    await gateway.publish("doll", "three", id="m3", priority="low")
    live = await stream.next()
    assert live is not None
    assert (live["id"], live["priority"]) == ("m3", "low")
    assert '"cursor"' not in live["text"]
    await stream.end()


async def test_a_watcher_sees_only_what_it_asks_for(gateway: Harness) -> None:
    everything = await EventStream.open(gateway)
    streams = {
        query: await EventStream.open(gateway, query)
        for query in ("?device=doll-1", "?user=99", "?user=%2299%22", "?group=g%2F1", "?group=g%2F1&user=99")
    }
    for device_id, user_id, groups in (("doll-1", 99, []), ("doll-2", "99", ["g/1"]), ("doll-3", 99, ["g/1", "x"])):
        await gateway.upgrade(gateway.token(device_id, user_id=user_id, groups=groups))
    await everything.some(3)
    for device_id in ("doll-1", "doll-2", "doll-3"):
        await gateway.publish(device_id, "hello")
    seen = [event["device_id"] for event in await everything.some(3)]
    assert seen == ["doll-1", "doll-2", "doll-3"]
    for query, expected in zip(
        streams, (["doll-1"], ["doll-1", "doll-3"], ["doll-2"], ["doll-2", "doll-3"], ["doll-3"]), strict=True
    ):
        events = await streams[query].some(2 * len(expected))
        assert [event["device_id"] for event in events] == [*expected, *expected], query
        assert {event["event"] for event in events} == {"connected", "message"}
        await streams[query].end()
    await everything.end()


@pytest.mark.parametrize("query", ["?device=", "?user=%ff", "?group=%00", "?group=a&group=b", f"?device={'d' * 129}"])
async def test_an_impossible_filter_is_a_400_that_names_the_field(gateway: Harness, query: str) -> None:
    stream = await EventStream.ask(gateway, query)
    name = query[1:].partition("=")[0]
    assert (stream.response.status, json.loads(stream.response.body)) == (400, {"message": f"Invalid {name}"})
    await stream.end()


async def test_a_slow_watcher_learns_how_many_events_it_has_lost_and_slows_no_device(start_admin: StartAdmin) -> None:
    gateway = await start_admin()
    device = await gateway.connect("doll", max_size=None)
    slow = await EventStream.open(gateway, receive_buffer=4096)
    text, messages = "x" * 20_000, 1_000
    for number in range(messages):
        await gateway.publish("doll", text, id=str(number))
        await device.recv()
    seen, lost = 0, 0
    while seen + lost < messages:
        event = await slow.next()
        assert event is not None
        if event["event"] == "lost":
            lost += event["lost"]
        else:
            assert event["id"] == str(seen + lost)
            seen += 1
    assert lost > 0
    assert (await gateway.metrics())["cocoa_admin_events_lost_total"] == lost
    await slow.end()


async def test_a_watcher_that_leaves_is_forgotten_at_once(gateway: Harness) -> None:
    live = gateway.gateway.wiring.devices.events.live
    for leave in ("reset", "close"):
        stream = await EventStream.open(gateway)
        assert len(live.sinks) == 1
        getattr(stream._device, leave)()
        await eventually(lambda: not live.sinks)


async def test_there_are_so_many_watchers_and_no_more(gateway: Harness) -> None:
    streams = [await EventStream.open(gateway) for _ in range(MAX_WATCHERS)]
    refused = await EventStream.ask(gateway)
    assert (refused.response.status, json.loads(refused.response.body)) == (503, {"message": "Too many watchers"})
    assert int(refused.response.headers["retry-after"]) > 0
    await refused.end()
    await streams.pop().end()
    await eventually(lambda: len(gateway.gateway.wiring.admin.watchers) < MAX_WATCHERS)
    streams.append(await EventStream.open(gateway))
    for stream in streams:
        await stream.end()


async def test_a_stream_ends_when_its_token_does(gateway: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventsHandler, "_left_s", 0.05)
    stream = await EventStream.open(gateway)
    assert await stream.next() is None
    assert stream.comments[-1] == "the token is no longer valid"
    await stream.end()


async def test_a_stream_ends_when_its_key_is_removed(gateway: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoa_tornado.admin.event_handlers.HEARTBEAT_S", 0.05)
    stream = await EventStream.open(gateway)
    live = gateway.gateway.parts.live
    live.now = replace(live.now, admin_keys=None)
    assert await stream.next() is None
    assert stream.comments[-1] == "the token is no longer valid"
    await stream.end()


async def test_without_events_there_is_a_heartbeat(gateway: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoa_tornado.admin.event_handlers.HEARTBEAT_S", 0.05)
    stream = await EventStream.open(gateway)
    while stream.comments[1:] != ["", ""]:
        await stream._read_chunk()
        stream._take_comments()
    await stream.end()


async def test_a_drain_ends_the_streams_before_the_devices_leave(start_admin: StartAdmin) -> None:
    gateway = await start_admin(drain_delay_s=0.3)
    device = await gateway.connect("doll")
    streams = [await EventStream.open(gateway), await EventStream.open(gateway, receive_buffer=4096)]
    stopping = asyncio.ensure_future(gateway.gateway.drain_and_stop())
    assert [await stream.next() for stream in streams] == [None, None]
    assert streams[0].comments[-1] == "the server stops"
    refused = await EventStream.ask(gateway)
    assert refused.response.status == 503
    await stopping
    await device.wait_closed()
    assert device.close_code == 1001
    for stream in (*streams, refused):
        await stream.end()


# -- several servers


async def test_a_watcher_sees_the_events_of_all_servers(two_admins: Two) -> None:
    a, b = two_admins
    streams = [await EventStream.open(a), await EventStream.open(a, "?device=there", token=admin_token("admin:read"))]
    streams.append(await EventStream.open(b))
    there = await b.connect("there")
    for stream in streams:
        event = await stream.next()
        assert event is not None
        assert (event["event"], event["server"], event["device_id"]) == ("connected", "b", "there")
    await a.raw("here")
    await b.publish("there", "hello", id="m1")
    await there.recv()
    await there.close()
    everything, one, at_b = [await stream.some(count) for stream, count in zip(streams, (3, 2, 3), strict=True)]
    assert {(event["event"], event["server"]) for event in everything} == {
        *(("connected", "a"), ("message", "b"), ("closed", "b")),
    }
    assert [event["event"] for event in one] == ["message", "closed"]
    assert "text" not in one[0]
    texts = [event["text"] for event in (*everything, *at_b) if event["event"] == "message"]
    assert [json.loads(text)["text"] for text in texts] == ["hello", "hello"]
    for stream in streams:
        await stream.end()


async def test_when_the_last_watcher_leaves_the_other_servers_send_no_more(
    two_admins: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocoa_tornado.admin.subscribers.LEASE_S", 0.2)
    a, b = two_admins
    there = b.gateway.wiring.devices.events.live
    stream = await EventStream.open(a)
    assert len(there.sinks) == 1
    await stream.end()
    await eventually(lambda: not there.sinks)


async def test_a_subscription_is_renewed_as_long_as_an_operator_watches(
    two_admins: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocoa_tornado.admin.watchers.RENEW_S", 0.05)
    a, b = two_admins
    there = b.gateway.wiring.devices.events.live
    stream = await EventStream.open(a)
    for sink in there.sinks:
        there.discard(sink)
    await eventually(lambda: bool(there.sinks))
    await b.raw("there")
    assert (await stream.some(1))[0]["server"] == "b"
    await stream.end()


async def test_a_server_that_does_not_answer_is_named_once_with_an_unknown_number_of_lost_events(
    two_admins: Two, neighbors: Neighbors, monkeypatch: pytest.MonkeyPatch
) -> None:
    if type(neighbors) is not Neighbors:
        pytest.skip("in memory, a server can be cut off without being declared dead")
    monkeypatch.setattr("cocoa_tornado.admin.servers.PATIENCE_S", 0.1)
    monkeypatch.setattr("cocoa_tornado.admin.watchers.RENEW_S", 0.05)
    a, b = two_admins
    neighbors.cut(b.gateway)
    stream = await EventStream.open(a)
    (lost,) = await stream.some(1)
    assert (lost["event"], lost["lost"]) == ("lost", None)
    renewed = a.gateway.relay.counters.accepted["query"] + 2
    await eventually(lambda: a.gateway.relay.counters.accepted["query"] >= renewed)
    await a.raw("here")
    assert (await stream.some(1))[0]["event"] == "connected"
    await stream.end()


async def test_nothing_is_made_of_events_while_nobody_watches(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("cocoa_tornado.rules.live_events.LiveEvents.happened", fail)
    monkeypatch.setattr("cocoa_tornado.rules.live_events.LiveEvents.written", fail)
    device = await gateway.connect("doll")
    await gateway.publish("doll", "hello")
    await device.recv()
    assert (await ask(gateway, "GET", "/devices/doll"))[1]["events"][0]["event"] == "connected"
