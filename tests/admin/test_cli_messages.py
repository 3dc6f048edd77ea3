"""``cocoa admin send``, ``trace``, ``explain``, ``quarantine`` and ``requeue``, against a gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testing.raw_device import TEXT
from testing.waiting import eventually

from ..harness import RESULTS, Harness
from .conftest import StartAdmin, admin_token
from .operator import done, fails, json_of, run, words
from .test_quarantine import GOOD, reject

pytestmark = pytest.mark.gen_test(timeout=60)


# -- send


async def test_a_message_is_sent_and_its_id_is_printed(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    lines = await done(gateway, "send", "--device", "doll", "--text", "Gute Nacht, Bär", "--id", "m1")
    message = json.loads((await device.read_until(TEXT)).payload)
    assert lines == ["m1"]
    assert list(message) == ["type", "device_id", "text", "timestamp", "success", "id"]
    assert (message["text"], message["device_id"], message["success"]) == ("Gute Nacht, Bär", "doll", True)
    assert await json_of(gateway, "send", "--device", "doll", "--id", "m2") == {"id": "m2"}


@pytest.mark.parametrize(
    "to",
    [["--user", "99"], ["--group", "kitchen"], ["--all"], ["--device", "doll", "--device", "bear"]],
    ids=" ".join,
)
async def test_a_message_may_be_for_many(gateway: Harness, to: list[str]) -> None:
    devices = [await gateway.upgrade(gateway.token(each, groups=["kitchen"])) for each in ("doll", "bear")]
    await done(gateway, "send", *to, "--text", "hello", "--ttl", "1m", "--priority", "high", "--collapse-key", "k")
    for device in devices:
        assert b'"text":"hello"' in (await device.read_until(TEXT)).payload


async def test_some_can_be_excepted_and_fields_can_be_added(gateway: Harness) -> None:
    doll, bear = await gateway.raw("doll"), await gateway.raw("bear")
    await done(gateway, "send", "--all", "--except", "bear", "--text", "one", "--field", "n=[1]", "--field", "s=x=y")
    await done(gateway, "send", "--all", "--text", "two", "--field", "success=false")
    message = json.loads((await doll.read_until(TEXT)).payload)
    assert (message["text"], message["n"], message["s"], message["success"]) == ("one", [1], "x=y", True)
    message = json.loads((await bear.read_until(TEXT)).payload)
    assert (message["text"], message["success"]) == ("two", False)


@pytest.mark.parametrize("source", ["file", "-"])
async def test_a_whole_record_is_sent_as_it_is(gateway: Harness, tmp_path: Path, source: str) -> None:
    device = await gateway.raw("doll")
    record = b' {"device_id" : "doll",\n "n":1.50, "id":"m1"}\n'
    (tmp_path / "record.json").write_bytes(record)
    argument = "-" if source == "-" else str(tmp_path / "record.json")
    assert await done(gateway, "send", argument, input=record) == ["m1"]
    assert (await device.read_until(TEXT)).payload == (
        b'{"type":"transcription","device_id":"doll","n":1.50,"id":"m1"}'
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "Give a FILE, or one of --device, --user, --group and --all"),
        (("--text", "x"), "Give a FILE, or one of --device, --user, --group and --all"),
        (("--device", "d", "--all"), "one of --device, --user, --group and --all"),
        (("--device", "d", "--except", "e"), "--except requires"),
        (("-", "--device", "d"), "not both"),
        (("no/such.json",), "no/such.json"),
        (("--device", "d", "--ttl", "soon"), "--ttl: 'soon' is not a duration"),
        (("--device", "d", "--ttl", "0.5"), "--ttl: whole seconds"),
        (("--device", "d", "--priority", "urgent"), "urgent"),
        (("--device", "d", "--field", "x"), "NAME=VALUE"),
        (("--device", "d", "--id", ""), "--id: 1 to 64 bytes"),
        (("--device", "d", "--id", "ä" * 33), "--id: 1 to 64 bytes"),
        (("--device", "\udcff"), "not UTF-8"),
    ],
)
async def test_options_that_make_no_record_are_status_2(
    gateway: Harness, arguments: tuple[str, ...], problem: str
) -> None:
    for command in ("send", "explain"):
        fails(await run(gateway, command, *arguments), problem, 2)
    assert RESULTS not in gateway.gateway.broker.counters.published


async def test_an_invalid_record_is_not_sent_and_status_1(gateway: Harness) -> None:
    fails(await run(gateway, "send", "-", input=b'{"device_id":"d","ttl":-1}'), "The record has an invalid ttl")
    fails(await run(gateway, "send", "-", input=b"x" * 65_537), "too large")
    assert RESULTS not in gateway.gateway.broker.counters.published


# -- trace and explain


async def test_a_trace_shows_steps_and_outcomes(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://", server_name="here")
    device = await gateway.raw("doll")
    await done(gateway, "send", "--device", "doll", "--device", "away", "--text", "hello", "--id", "m 1/2")
    await device.read_until(TEXT)

    async def outcomes() -> dict[str, str]:
        return {row["device_id"]: row["outcome"] for row in (await json_of(gateway, "trace", "m 1/2"))["devices"]}

    while await outcomes() != {"doll": "written", "away": "waiting"}:  # the mark of what was written is kept in time
        pass
    lines = await done(gateway, "trace", "m 1/2")
    cells = [words(line) for line in lines]
    assert lines[0].startswith("1 waiting, 1 written; away: waiting")
    assert lines[2].startswith("message  m 1/2, ")
    assert '"text":"hello"' in lines[3]
    assert [row[2] for row in cells[6:9]] == ["produced", "read", "addressed"]
    assert ["doll", "written"] in [row[:2] for row in cells]
    assert ["away", "waiting"] in [row[:2] for row in cells]
    assert ["waiting", "1", "in the device's box; without a mailbox, in the queue of its connection"] in cells
    lines = await done(gateway, "trace", "m 1/2", token=admin_token("admin:read"))
    assert "hello" not in "\n".join(lines)


async def test_a_message_that_no_server_remembers_is_status_1(gateway: Harness) -> None:
    for message_id in ("m1", f"{RESULTS}/0/0"):
        fails(await run(gateway, "trace", message_id), "No server remembers this message")


async def test_explain_says_what_would_become_of_a_record(gateway: Harness) -> None:
    await gateway.upgrade(gateway.token("doll", groups=["kitchen"]))
    lines = await done(gateway, "explain", "--group", "kitchen", "--text", "hello")
    assert words(lines[1])[:2] == ["doll", "send"]
    assert lines[-1] == "send: 1"
    assert (await json_of(gateway, "explain", "-", input=b'{"device_id":"doll"}'))["counts"] == {"send": 1}
    for arguments in (["--device", "away"], ["--group", "cellar"]):
        result = await run(gateway, "explain", *arguments)
        assert (result.exit_code, result.stderr) == (1, "Error: it would reach no device\n")
    fails(await run(gateway, "explain", "-", input=b"{"), "it would be quarantined (not_json)")
    assert RESULTS not in gateway.gateway.broker.counters.published


async def test_explain_takes_headers_and_a_timestamp(gateway: Harness, tmp_path: Path) -> None:
    await gateway.upgrade(gateway.token("doll", groups=["kitchen"]))
    record = tmp_path / "record.json"
    record.write_text('{"device_id":"away","ttl":60}')
    lines = await done(gateway, "explain", str(record), "--header", 'cocoa.to={"group":"kitchen"}', "--header", "x=")
    assert words(lines[1])[:2] == ["doll", "send"]
    fails(await run(gateway, "explain", str(record), "--header", "cocoa.ttl=-1"), "it would be quarantined (ttl)")
    to_doll = ("explain", "--device", "doll", "--ttl", "60s", "--timestamp")
    assert (await json_of(gateway, *to_doll, "2100-01-01T00:00:00Z"))["counts"] == {"send": 1}
    result = await run(gateway, *to_doll, "2020-01-01T00:00:00+01:00", "--json")
    assert (result.exit_code, json.loads(result.stdout)["counts"]) == (1, {"drop": 1})


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--header", "x"), "NAME=VALUE"),
        (("--header", "=x"), "NAME=VALUE"),
        (("--header", "x=1", "--header", "x=2"), "--header 'x' is given twice"),
        (("--header", "x=\udcff"), "not UTF-8"),
        (("--timestamp", "yesterday"), "'yesterday' is not a time in RFC 3339"),
        (("--timestamp", "2030-01-01T00:00:00"), "is not a time in RFC 3339"),
    ],
)
async def test_headers_and_timestamps_that_are_none_are_status_2(
    gateway: Harness, arguments: tuple[str, ...], problem: str
) -> None:
    fails(await run(gateway, "explain", "--device", "doll", *arguments), problem, 2)


# -- quarantine and requeue


async def test_the_quarantine_is_listed_newest_first(gateway: Harness) -> None:
    assert (await run(gateway, "quarantine")).stderr == "No record is in quarantine.\n"
    await reject(gateway, b"{", b"[]" + b" " * 100)
    header, second, first = await done(gateway, "quarantine")
    assert words(header) == ["PLACE", "AT", "REASON", "FROM", "KEY", "BYTES", "REQUEUED", "VALUE"]
    assert words(first)[0] == "0/0"
    assert words(first)[2:] == ["not_json", f"{RESULTS}/0/0", "doll", "1", "no", "{"]
    assert words(second)[2] == "not_object"
    assert len(await done(gateway, "quarantine", "--limit", "1")) == 2
    assert len((await json_of(gateway, "quarantine"))["records"]) == 2


async def test_a_record_is_looked_at_corrected_and_sent_again_once(gateway: Harness, tmp_path: Path) -> None:
    device = await gateway.raw("doll")
    await reject(gateway, b"{\xc3\xbc\n", b"\xff", ttl=b'"wrong"')
    lines = await done(gateway, "quarantine", "0/0")
    assert words(lines[0]) == ["place", "0/0"]
    assert "\n".join(lines).count("wrong") == 1
    assert (await run(gateway, "quarantine", "0/0", "--value")).stdout_bytes == b"{\xc3\xbc\n"
    assert (await json_of(gateway, "quarantine", "0/0"))["reason"] == "not_json"
    fails(await run(gateway, "quarantine", "0/1", "--value"), "the value is not UTF-8")
    fails(await run(gateway, "quarantine", "0/0", "--value", token=admin_token("admin:read")), "admin:text")
    fails(await run(gateway, "quarantine", "0/2"), "no record at 0/2")

    fails(await run(gateway, "requeue", "0/0"), "The record is not JSON")
    (tmp_path / "fixed.json").write_bytes(GOOD)
    lines = await done(gateway, "requeue", "0/0", "--value", str(tmp_path / "fixed.json"))
    assert lines == [f"{RESULTS}/0/2"]
    assert b'"text":"hello"' in (await device.read_until(TEXT)).payload
    fails(await run(gateway, "requeue", "0/0", "--value", "-", input=GOOD), "requeued already")
    fails(await run(gateway, "requeue", "0/7"), "no record at 0/7")
    await eventually(lambda: gateway.gateway.broker.status().lag == 0)
    assert words((await done(gateway, "quarantine"))[-1])[-2:] == ["yes", "{ü\\n"]


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ("requeue",),
            ("requeue", "0"),
            ("requeue", "0/x"),
            ("requeue", "-1/0"),
            ("requeue", "0/0", "--value", "/dev/null"),
        ),
        *(("quarantine", "a/b"), ("quarantine", "--value"), ("quarantine", "--limit", "0")),
        ("quarantine", "0/0", "--limit", "5"),
    ],
    ids=" ".join,
)
async def test_a_wrong_place_is_status_2(gateway: Harness, arguments: tuple[str, ...]) -> None:
    result = await run(gateway, *arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
