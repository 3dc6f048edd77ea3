"""``cocoa admin tail`` and ``top``."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from cli import server_sent_events
from cli.server_sent_events import Comment, Event, EventParser, TooLong
from testing.raw_device import TEXT
from testing.waiting import eventually

from ..any_text import assert_done_or_plain_line
from ..harness import Harness
from ..hostile_answers import HOSTILE, answer, answering, without_length
from .conftest import StartAdmin, admin_token
from .operator import done, fails, invoke, json_of, run, words
from .test_cli_hostile import NASTY

pytestmark = pytest.mark.gen_test(timeout=60)
CONNECTED = '{"event":"connected","at":"2030-01-01T10:00:00Z","server":"a","device_id":"doll","user_id":99,"code":101}'


async def watching(gateway: Harness, *arguments: str, **options: str) -> asyncio.Task[Result]:
    """The command, once the gateway has noticed that it watches."""
    running = asyncio.ensure_future(run(gateway, "tail", *arguments, **options))
    await eventually(lambda: running.done() or len(gateway.gateway.wiring.admin.watchers) == 1)
    return running


# -- tail


async def test_tail_prints_one_line_for_each_event(gateway: Harness) -> None:
    running = await watching(gateway, "--limit", "3", "--group", "kitchen")
    await gateway.raw("bear")
    device = await gateway.upgrade(gateway.token("doll", groups=["kitchen"]))
    await gateway.publish("doll", "hello", id="m1", to={"device": "doll"}, priority="high")
    await device.read_until(TEXT)
    await device.end()
    result = await running
    assert (result.exit_code, result.stderr) == (0, "")
    first, second, third = (words(line) for line in result.stdout.splitlines())
    assert first[2:] == ["connected", "doll", "101"]
    assert second[2:4] == ["message", "doll"]
    assert second[4].startswith("id m1, high, ")
    assert '"text":"hello"' in second[5]
    assert third[2:] == ["closed", "doll", "1006"]


async def test_tail_prints_the_events_as_json_and_may_choose_their_kinds(gateway: Harness) -> None:
    running = await watching(gateway, "--limit", "2", "--event", "message", "--event", "closed", "--json")
    device = await gateway.raw("doll")
    await gateway.publish("doll", "hello")
    await device.read_until(TEXT)
    await device.end()
    result = await running
    message, closed = (json.loads(line) for line in result.stdout.splitlines())
    assert (message["event"], message["device_id"]) == ("message", "doll")
    assert json.loads(message["text"])["text"] == "hello"
    assert (closed["event"], closed["code"]) == ("closed", 1006)


async def test_tail_shows_text_to_its_scope_only(gateway: Harness) -> None:
    running = await watching(gateway, "--limit", "2", "--device", "doll", token=admin_token("admin:read"))
    await gateway.raw("doll")
    await gateway.publish("doll", "whispered")
    result = await running
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 2)
    assert "whispered" not in result.output


async def test_a_tail_that_cannot_begin_is_status_1(gateway: Harness) -> None:
    fails(await run(gateway, "tail", token=admin_token("admin:write")), "Missing scope admin:read")
    fails(await run(gateway, "tail", token=admin_token(lifetime_s=-100)), "it expired at")
    fails(await run(gateway, "tail", "--device", "d" * 129), "Invalid device")
    fails(await run(gateway, "tail", "--event", "everything"), "everything", 2)


def scripted(*answers: bytes) -> Callable[[Callable[[bytes], None]], None]:
    left = list(answers)
    return lambda send: send(left.pop(0))


def stream(*lines: str) -> bytes:
    return without_length(b"Content-Type: text/event-stream", body="\n\n".join([*lines, ""]).encode())


def tail(url: str, *arguments: str) -> Result:
    return invoke("tail", "--url", url, *arguments, env={"COCOA_ADMIN_TOKEN": "a.b.c"})


def test_a_stream_that_ends_is_opened_again_until_the_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.admin_tail.FIRST_PAUSE_S", 0.01)
    answers = (
        stream(": all events from now on", f"event: connected\ndata: {CONNECTED}", ": the server stops"),
        answer(b'{"message":"Too many watchers"}', status=b"503 Service Unavailable"),
        b"",
        stream(f"data: {CONNECTED}"),
        answer(b'{"message":"Invalid JWT token"}', status=b"401 Unauthorized"),
    )
    with answering(scripted(*answers)) as url:
        result = tail(url, "--json")
    where, missed = url.removeprefix("http://"), "What happens until then is not shown."
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [CONNECTED, CONNECTED]
    assert result.stderr.splitlines() == [
        f"{where} ended the stream: the server stops; connecting again in 0.01 s. {missed}",
        f"Too many watchers; connecting again in 0.02 s. {missed}",
        f"{where}: the other side closed the connection without an answer; connecting again in 0.04 s. {missed}",
        "Connected again.",
        f"{where} ended the stream; connecting again in 0.01 s. {missed}",
        f"Error: {where} does not accept the token: Invalid JWT token",
    ]


def test_a_server_that_is_silent_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.admin_tail.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("cli.admin_tail.SILENCE_S", 0.05)
    answers = [stream(": begun"), answer(b'{"message":"Invalid JWT token"}', status=b"401 Unauthorized")]

    def send(write: Callable[[bytes], None]) -> None:
        write(answers.pop(0))
        if answers:
            released.wait(30)

    released = threading.Event()
    with answering(send) as url:
        result = tail(url)
        released.set()
    assert "no answer in time; connecting again" in result.stderr


def test_lost_events_are_said_whatever_is_chosen() -> None:
    lost = '{"event":"lost","at":"2030-01-01T10:00:00.120Z","server":"a","lost":%s}'
    body = stream(f"data: {lost % 1234}", f"data: {lost % 'null'}", f"data: {CONNECTED}")
    with answering(scripted(body)) as url:
        result = tail(url, "--event", "connected", "--limit", "1")
    first, second, _ = (words(line) for line in result.stdout.splitlines())
    assert (first[2:], second[2:]) == (["lost", "1,234 events were lost"], ["lost", "events were lost"])


def test_no_event_controls_a_terminal() -> None:
    fields = dict.fromkeys(("at", "server", "device_id", "id", "priority", "text"), NASTY)
    event = fields | {"event": "message", "interim": True, "length": 5, "age_ms": None, "code": 5}
    other = fields | {"event": "closed", "code": NASTY}
    body = stream(f": {NASTY[:3]}", f"data: {json.dumps(event)}", f"data: {json.dumps(other)}", f": {NASTY[:3]}")
    for options in ([], ["--json"]):
        with answering(scripted(body, answer(b"{}", status=b"401 Unauthorized"))) as url:
            result = tail(url, *options)
        assert len(result.stdout.splitlines()) == 2
        assert all(line.isprintable() for line in result.output.split("\n")), ascii(result.output)


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_answers_tail_it_is_one_line(name: str) -> None:
    with answering(lambda send: send(HOSTILE[name])) as url:
        assert_done_or_plain_line(tail(url, "--timeout", "2"), 1)


def test_an_event_of_another_form_is_one_line() -> None:
    for data in ("5", "{", "{}", '{"event":"message"}'):
        with answering(scripted(stream(f"data: {data}"))) as url:
            fails(tail(url), "cannot read its answer")


# -- the parser


@given(st.integers(1, 20), st.sampled_from(["\n", "\r\n"]))
def test_events_are_read_however_their_bytes_are_split(size: int, end: str) -> None:
    text = ': begun\n\nevent: x\ndata: {"a":1}\n\n:\n\ndata: ü\ndata:  b\nid: 5\n: c\n\nretry: 5\n\ndata: unfinished'
    data, parser = text.replace("\n", end).encode(), EventParser()
    found = [each for at in range(0, len(data), size) for each in parser.feed(data[at : at + size])]
    assert found == [Comment("begun"), Event('{"a":1}'), Comment(""), Comment("c"), Event("ü\n b")]


def test_an_event_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_sent_events, "MAX_BLOCK_BYTES", 10)
    with pytest.raises(TooLong):
        EventParser().feed(b"data: 123456")


# -- overview


async def test_overview_shows_the_servers_and_what_they_have_counted(start_admin: StartAdmin) -> None:
    gateway = await start_admin(server_name="here", mailbox="memory://")
    await gateway.raw("doll")
    assert (await gateway.upgrade(gateway.token("late", lifetime_s=-60))).response.status == 401
    await gateway.publish("away", "later")
    await eventually(lambda: gateway.gateway.counters.kept == 1)
    lines = [words(line) for line in await done(gateway, "overview")]
    assert lines[0] == ["SERVER", "STATE", "VERSION", "STARTED", "CONNECTIONS", "DEVICES", "BEHIND"]
    assert (lines[1][:2], lines[1][-3:-1]) == (["here", "ready"], ["1", "1"])
    assert lines[3] == ["COUNTED", "LAST HOUR", "SINCE THE START"]
    for line in (["records read", "1", "1"], ["messages kept for later", "1", "1"], ["connections refused", "1", "1"]):
        assert line in lines
    at = lines.index(["REFUSED", "LAST HOUR", "SINCE THE START"])
    assert lines[at + 1] == ["expired", "1", "1"]
    assert lines[-1][0].startswith("Kept in boxes, written ones included: 1 message, ")
    assert [row["server"] for row in (await json_of(gateway, "overview"))["servers"]] == ["here"]


def test_overview_takes_canary_messages_out_of_the_records_read_and_says_what_fails() -> None:
    row: dict[str, object] = dict.fromkeys(("server", "version", "started_at"), NASTY)
    row |= {"connections": 1, "devices": 1, "failing": [NASTY], "lag": None, "waiting": None}
    row |= {"counters": {"read": 10, "canaries": 4, "leaked": 2}, "refused": {NASTY: 3}, "closed": {}}
    recent = {"counters": {"canaries": 1}, "refused": {}, "closed": {}}
    body = {"servers": [row, row | {"recent": recent}], "missing": []}  # the first is of the last release
    with answering(lambda send: send(answer(json.dumps(body).encode()))) as url:
        result = invoke("overview", "--url", url, env={"COCOA_ADMIN_TOKEN": "a.b.c"})
    assert all(line.isprintable() for line in result.stdout.splitlines())
    lines = [words(line) for line in result.stdout.splitlines()]
    assert ["records read", "5", "12"] in lines
    assert ["messages that reached the wrong canary", "2", "4"] in lines
    assert lines[1][1].startswith("not ready: ")


# -- top


async def test_top_lists_the_devices_that_need_attention(gateway: Harness) -> None:
    assert (await run(gateway, "top")).stderr == "No device needs attention.\n"
    for _ in range(3):
        await (await gateway.raw("doll")).end()
    await eventually(lambda: len(gateway.gateway.hub) == 0)
    lines = await done(gateway, "top")
    assert words(lines[0]) == ["CONNECTS AGAIN AND AGAIN", "TIMES", "SINCE", "LAST"]
    assert words(lines[1])[0] == "doll"
    assert [row["device_id"] for row in (await json_of(gateway, "top", "--limit", "1"))["reconnects"]] == ["doll"]


def test_each_list_of_top_has_its_table() -> None:
    reader = {"device_id": NASTY, "server": NASTY, "generation": "1.1", "queue": 500, "rtt_ms": None}
    repeat = {"device_id": NASTY, "count": 1234, "since": NASTY, "last": NASTY}
    body = {"queues": [reader], "round_trips": [reader | {"rtt_ms": 1.5}], "reconnects": [repeat], "loops": [repeat]}
    body["full_boxes"] = [repeat]
    body["read_again"] = [{"id": NASTY, "records": 2, "count": 3, "servers": [NASTY], "last": NASTY}]
    with answering(lambda send: send(answer(json.dumps(body | {"missing": []}).encode()))) as url:
        result = invoke("top", "--url", url, env={"COCOA_ADMIN_TOKEN": "a.b.c"})
    lines = result.stdout.splitlines()
    assert (len(lines), result.stdout.count("1,234"), result.exit_code) == (17, 3, 0)
    assert all(line.isprintable() for line in lines)
