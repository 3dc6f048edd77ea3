"""``cocoa admin`` against servers that are not gateways, or hostile: one line for each problem, and no answer controls
a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

import pytest
from click.testing import Result
from hypothesis import example, given
from hypothesis import strategies as st

from testing.ports import ReservedPort

from ..any_text import any_text, argument, assert_done_or_plain_line, slips_in
from ..hostile_answers import HOSTILE, answer, answering
from .operator import commands, fails, invoke

NASTY: Final = "\x1b[2J\u202e\u009b31m\r\n\x07\u2028\ud83d"


def at(url: str, *arguments: str, **options: Any) -> Result:
    return invoke(*arguments, "--url", url, env={"COCOA_ADMIN_TOKEN": "a.b.c"}, **options)


@commands
def test_a_gateway_that_is_away_is_one_line(command: tuple[str, ...]) -> None:
    with closing(ReservedPort()) as port:
        result = at(f"http://127.0.0.1:{port.number}", *command)
    fails(result, f"cannot connect to 127.0.0.1:{port.number}: Connection refused")


def test_a_limited_rate_is_waited_for_if_that_is_short() -> None:
    waited: list[float] = []
    answers = [
        answer(b'{"message":"Too many requests"}', b"Retry-After: 2", status=b"429 Too Many Requests"),
        answer(b'{"devices":[],"next":null,"missing":[]}'),
    ]
    with pytest.MonkeyPatch.context() as patch, answering(lambda send: send(answers.pop(0))) as url:
        patch.setattr("cli.admin_client.AdminClient.wait", lambda self, seconds: waited.append(seconds))
        result = at(url, "devices", "--json")
        assert (result.exit_code, waited) == (0, [2.0])
        answers += [answer(b'{"message":"Too many wrong tokens"}', b"Retry-After: 6", status=b"429 Too Many")]
        fails(at(url, "devices"), "Too many wrong tokens; try again in 6 s")
    assert (waited, answers) == ([2.0], [])


def test_a_server_that_does_not_answer_in_time_is_one_line() -> None:
    with answering(lambda send: send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")) as url:
        fails(at(url, "devices", "--timeout", "0.1"), "")  # its end, or the time


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_answers_it_is_one_line(name: str) -> None:
    with answering(lambda send: send(HOSTILE[name])) as url:
        for command in (("devices",), ("trace", "m1", "--json")):
            assert_done_or_plain_line(at(url, *command, "--timeout", "2"), 1)


@commands
def test_an_answer_of_another_form_is_one_line(command: tuple[str, ...]) -> None:
    for body in (b"{}", b'{"devices":5,"closed":"x","records":[{}],"steps":[5],"valid":true}'):
        with answering(lambda send, body=body: send(answer(body))) as url:  # type: ignore[misc]  # the default has no type
            result = at(url, *command)
        if command[0] not in ("unblock",):  # of whose answer it uses nothing
            fails(result, "cannot read its answer")


# -- terminals


def answers_with(text: str) -> dict[str, object]:
    """The answer to each command, with one text in each place where a device or a producer may put text."""
    connection = {
        "server": text,
        "generation": text,
        "connected_at": text,
        "ip": text,
        "version": text,
        "rtt_ms": 1.5,
        "queue": 1000,
        "last_activity": text,
    }
    row = {"device_id": text, "user_id": text, "groups": [text, text], "connections": [connection]}
    box = {"oldest": text, "newest": text, "acknowledged": {text: 5}, "messages": 3, "bytes": 9}
    event = {"at": text, "server": text, "event": text, "code": 1}
    place = {"partition": 0, "offset": 0, "timestamp": text, "reason": text, "topic": text}
    record = {
        **place,
        "source_partition": 1,
        "source_offset": 2,
        "key": text,
        "value_bytes": 5,
        "value": text,
        "is_cut": False,
        "headers": [{"name": text, "value": text}],
        "dropped": {text: 5},
        "requeued": True,
    }
    step = {"at": text, "server": text, "step": text}
    return {
        "devices": {"devices": [row], "next": text, "missing": [text]},
        "device": row | {"box": box, "events": [event], "missing": [text]},
        "kick": {"closed": 1, "missing": [text]},
        "block": {"blocked": True, "until": text, "closed": 1, "missing": [text]},
        "unblock": {"blocked": False, "missing": [text]},
        "empty": {"deleted": 1},
        "send": {"id": text},
        "trace": {
            "id": text,
            "steps": [step],
            "devices": [{"device_id": text, "outcome": text}],
            "counts": {text: 1},
            "missing": [text],
            "length": 5,
            "text": text,
        },
        "explain": {
            "valid": True,
            "devices": [{"device_id": text, "would": "send", "why": text}],
            "counts": {text: 1},
            "more": False,
            "missing": [text],
        },
        "quarantine": {**record, "records": [record]},
        "requeue": {"id": text},
    }


@commands
@pytest.mark.parametrize("escape", [True, False], ids=["escaped", "raw"])
def test_no_answer_controls_a_terminal(command: tuple[str, ...], escape: bool) -> None:
    text = NASTY if escape else "\u202e\u009b31m\u2028\x7f"
    body = json.dumps(answers_with(text)[command[0]], ensure_ascii=escape).encode()
    limit = ["--limit", "1"] if command[0] == "devices" else []
    with answering(lambda send: send(answer(body))) as url:
        for options in ([], ["--json"]):
            result = at(url, *command, *limit, *options)
            assert (result.exit_code, result.stdout != "") == (0, True), result.output
            assert all(line.isprintable() for line in result.output.split("\n")), ascii(result.output)
        error = answer(json.dumps({"message": text}).encode(), status=b"400 Bad Request")
    assert json.loads(result.stdout) is not None
    with answering(lambda send: send(error)) as url:
        assert_done_or_plain_line(at(url, *command), 1)


def test_the_words_of_a_command_line_do_not_either() -> None:
    with answering(lambda send: send(answer(b'{"message":"Unknown"}', status=b"404 Not Found"))) as url:
        for command in (("device", NASTY), ("trace", NASTY), ("kick", NASTY), ("kick", "--group", NASTY)):
            assert_done_or_plain_line(at(url, *command), 1)


def test_colours_are_for_terminals_without_no_color() -> None:
    body = json.dumps(answers_with("x")["devices"]).encode()
    with answering(lambda send: send(answer(body))) as url:
        arguments, env = ("devices", "--limit", "1", "--url", url), {"COCOA_ADMIN_TOKEN": "a.b.c"}
        assert "\x1b[" in invoke(*arguments, env=env, color=True).stdout
        for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
            assert "\x1b" not in invoke(*arguments, env=env | plain, color=True).stdout
        assert "\x1b" not in invoke(*arguments, env=env).stdout
        assert "\x1b" not in invoke(*arguments, "--json", env=env, color=True).stdout


# -- any text


@pytest.fixture(scope="module")
def unknown() -> Iterator[str]:
    """A server that knows nothing."""
    with answering(lambda send: send(answer(b'{"message":"Unknown"}', status=b"404 Not Found"))) as url:
        yield url


URLS: Final = any_text | slips_in(["http://127.0.0.1:1/x", "https://[::1]:1", "127.0.0.1", "http://u:p@127.0.0.1:1"])
ARGUMENTS: Final = (
    *(("devices", f"--{name}") for name in ("user", "group", "prefix", "after", "limit", "token", "timeout")),
    *(("kick", f"--{name}") for name in ("user", "group")),
    *(("block", "doll", f"--{name}") for name in ("until", "for")),
    *(("send", "--device=d", f"--{name}") for name in ("text", "field", "ttl", "priority", "collapse-key", "id")),
    *(("explain", f"--{name}") for name in ("device", "user", "group")),
    *(("explain", "--device=d", f"--{name}") for name in ("header", "timestamp")),
    ("requeue", "0/0", "--value"),
    ("kick", "doll", "--reconnect-after"),
)


@given(command=st.sampled_from(ARGUMENTS), text=any_text | slips_in(["1", "5m", "a=1", "@x", "2030-01-01T00:00:00Z"]))
@example(command=("send", "--device=d", "--field"), text="x=" + "[" * 100_000)
@example(command=("send", "--device=d", "--ttl"), text="9" * 5000)
@example(command=("block", "doll", "--for"), text="9" * 300)
@example(command=("devices", "--limit"), text="9" * 5000)
@example(command=("explain", "--user"), text="9" * 5000)
@example(command=("explain", "--device=d", "--header"), text="a=\udcff")
@example(command=("send", "--device=d", "--field"), text="x=" + "9" * 5000)
def test_any_text_in_an_option_is_sent_or_one_plain_line(unknown: str, command: tuple[str, ...], text: str) -> None:
    *before, option = command
    assert_done_or_plain_line(at(unknown, *before, f"{option}={argument(text)}"), 1, 2)


@given(name=st.sampled_from(["device", "trace", "unblock", "quarantine", "send"]), text=any_text)
def test_any_text_for_an_id_is_sent_or_one_plain_line(unknown: str, name: str, text: str) -> None:
    assert_done_or_plain_line(at(unknown, name, "--", argument(text)), 1, 2)


@given(text=URLS)
@example(text="http://127.0.0.1:1/?token=a.b.c")
@example(text="")
def test_any_url_is_one_plain_line(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cli.admin_client.exchange", refuse)
        result = at(argument(text), "devices")
    assert result.exit_code in (1, 2)
    assert_done_or_plain_line(result, 1, 2)
    assert "a.b.c" not in result.output


async def refuse(*arguments: object, **options: object) -> None:
    raise ConnectionRefusedError(111, "Connection refused")
