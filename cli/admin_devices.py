"""``cocoa admin devices``, ``device``, ``kick``, ``block``, ``unblock`` and ``empty``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from cocoa_tornado.rules.durations import parse_duration_s

from .admin_client import AdminError, Answer, NotFound, place
from .admin_messages import outcome_shown
from .admin_options import Admin, Timestamp, admin_command, note
from .options import WrongUsage
from .terminal import NOTHING, Cell, facts, plain, table

MAX_PAGE: Final = 1_000
MAX_LIMIT: Final = 10_000_000
MAX_RECONNECT_S: Final = 86_400
MANY_WAITING: Final = 100
"""Messages in a queue that are worth a colour."""
_NUMBERS: Final = ("RTT MS", "QUEUE")
_OF_CONNECTION: Final = ("CONNECTED", "IP", "VERSION", *_NUMBERS, "LAST ACTIVITY")
_EVENT_COLOURS: Final = {"connected": "green", "refused": "red", "closed": "yellow"}


@admin_command("devices")
@click.option("--user", metavar="ID", help="Devices of this user: 99 is the integer, '\"99\"' the string.")
@click.option("--group", metavar="NAME", help="Devices of this group.")
@click.option("--prefix", metavar="TEXT", help="Devices whose ids begin with this.")
@click.option(
    "--members",
    is_flag=True,
    help="With --user or --group: all members, with a mailbox also those that are not connected.",
)
@click.option("--after", metavar="ID", help="Only devices whose ids come after this one, by their bytes.")
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_LIMIT),
    default=100,
    show_default=True,
    metavar="N",
    help="The most devices to list, with as many requests as needed.",
)
def devices(
    admin: Admin,
    user: str | None,
    group: str | None,
    prefix: str | None,
    members: bool,
    after: str | None,
    limit: int,
) -> None:
    """List the connected devices.

    One line per connection. RTT is the round trip of the last ping; QUEUE counts the messages that the socket has not
    taken yet. A member that is not connected has dashes.

    Exit status 1 if no device matches --user, --group, --prefix or --after.

    \b
      cocoa admin devices --prefix doll-
      cocoa admin devices --group kitchen --members
      cocoa admin devices --limit 100000 --json | jq -r '.devices[].device_id'
    """
    path: str = "/devices"
    query: dict[str, object] = {"user": user, "group": group, "prefix": prefix}
    if members:
        if (user is None) == (group is None) or prefix is not None:
            raise WrongUsage("--members requires --user or --group, and excludes --prefix.")
        path, query = place("users" if user is not None else "groups", user or group or "", "devices")
    answer = _all_pages(admin, path, query, after, limit)
    rows = answer.value["devices"]
    admin.show(answer, _device_lines(rows))
    if answer.value["next"] is not None:
        count = answer.value.get("connected")  # a server of the last release does not say it
        total = "" if count is None else f" ({count:,} connected{' members' if members else ''} in all)"
        note(f"There are more{total}: use a higher --limit, or --after {plain(answer.value['next'])}")
    if not rows and any(each is not None for each in (user, group, prefix, after)):
        raise NotFound("no such device is known" if members else "no such device is connected")
    if not rows and not admin.as_json:
        note("No device is connected.")


def _all_pages(admin: Admin, path: str, query: dict[str, object], after: str | None, limit: int) -> Answer:
    """Follow ``next`` until there are ``limit`` devices. Several pages make one answer of the same form."""
    answer = admin.ask("GET", path, query | {"after": after, "limit": str(min(limit, MAX_PAGE))})
    rows, missing = list(answer.value["devices"]), list(answer.value["missing"])
    left = limit - len(rows)
    if answer.value["next"] is None or left <= 0:
        return answer
    after = answer.value["next"]
    while after is not None and left > 0:
        page = admin.ask("GET", path, query | {"after": after, "limit": str(min(left, MAX_PAGE))}).value
        rows += page["devices"]
        missing += [name for name in page["missing"] if name not in missing]
        left -= len(page["devices"])
        after = page["next"]
    value = answer.value | {"devices": rows, "next": after, "missing": missing}
    return Answer(json.dumps(value, ensure_ascii=False, separators=(",", ":")), value)


@admin_command("device")
@click.argument("device_id", metavar="DEVICE")
def device(admin: Admin, device_id: str) -> None:
    """Show a device: connections, box, last events.

    Also its last messages, and whether it is blocked.

    The box has the messages that wait for the device; "acknowledged" is the number of the last message that it has
    acknowledged in each lane. The events are the last 20 that the servers remember: connected, refused (with the HTTP
    status), challenged, closed (with the close code; docs/protocol.rst has them all). The messages are the last 20 that
    it got or should have got, the newest first, as far as the servers remember; `cocoa admin trace ID` has more on
    each.

    Exit status 1 if no server knows the device.

    \b
      cocoa admin device doll-1
      cocoa admin device doll-1 --json | jq .box.messages
    """
    try:
        answer = admin.ask("GET", *place("devices", device_id))
    except NotFound as error:
        raise NotFound(f"{plain(device_id)}: no server knows this device, and nothing waits for it") from error
    admin.show(answer, _about(answer.value))


@admin_command("kick")
@click.argument("device_id", metavar="[DEVICE]", required=False)
@click.option("--user", metavar="ID", help="All devices of this user: 99 is the integer, '\"99\"' the string.")
@click.option("--group", metavar="NAME", help="All devices of this group.")
@click.option(
    "--reconnect-after",
    metavar="DURATION",
    help="Ask the devices to reconnect after this time: 30s, 5m; at most 24h.  [default: don't ask]",
)
def kick(admin: Admin, device_id: str | None, user: str | None, group: str | None, reconnect_after: str | None) -> None:
    """Close the connections of a device, a user or a group.

    Messages that are queued for them are sent first; the close code is 4410. The devices may reconnect; to refuse a
    device, use `cocoa admin block`.

    Exit status 1 if there was no connection to close.

    \b
      cocoa admin kick doll-1
      cocoa admin kick --group kitchen --reconnect-after 30s
    """
    target = [
        place(kind, each, "connections")
        for kind, each in (("devices", device_id), ("users", user), ("groups", group))
        if each is not None
    ]
    if len(target) != 1:
        raise WrongUsage("Give one of DEVICE, --user and --group.")
    after_s = None if reconnect_after is None else _whole_seconds("--reconnect-after", reconnect_after)
    path, query = target[0]
    answer = admin.ask("DELETE", path, query | {"reconnect_after": after_s})
    closed = answer.value["closed"]
    admin.show(answer, [f"Closed {_counted(closed, 'connection')}."] if closed else [])
    if not closed:
        raise NotFound("there was no connection to close")


@admin_command("block")
@click.argument("device_id", metavar="DEVICE")
@click.option(
    "--until", type=Timestamp(), metavar="TIME", help="The end of the block, in RFC 3339: 2030-01-01T00:00:00Z."
)
@click.option("--for", "duration", metavar="DURATION", help="Instead of a time: 90s, 15m, 24h, 7d.")
def block(admin: Admin, device_id: str, until: str | None, duration: str | None) -> None:
    """Disconnect a device and refuse it (403).

    The block applies to all servers, also after restarts. Without --until and --for it lasts until `cocoa admin
    unblock`. Blocking the device again replaces the end. The mailbox still stores its messages.

    \b
      cocoa admin block doll-1 --for 24h
      cocoa admin unblock doll-1
    """
    if until is not None and duration is not None:
        raise WrongUsage("--until and --for are mutually exclusive.")
    end = until if duration is None else _in(duration)
    body = b"" if end is None else json.dumps({"until": end}).encode()
    try:
        answer = admin.ask("PUT", *place("devices", device_id, "block"), body=body)
    except AdminError as error:
        if end is not None and error.message == "Invalid until":
            raise AdminError("the end of the block is not in the future") from error
        raise
    how_long = "until it is unblocked" if end is None else f"until {plain(answer.value['until'])}"
    closed = answer.value["closed"]
    admin.show(answer, [f"Blocked {plain(device_id)} {how_long}; closed {_counted(closed, 'connection')}."])


@admin_command("unblock")
@click.argument("device_id", metavar="DEVICE")
def unblock(admin: Admin, device_id: str) -> None:
    """Let a blocked device connect again.

    \b
      cocoa admin unblock doll-1
    """
    answer = admin.ask("DELETE", *place("devices", device_id, "block"))
    admin.show(answer, [f"{plain(device_id)} may connect."])


@admin_command("empty")
@click.argument("device_id", metavar="DEVICE")
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal, this is required.")
def empty(admin: Admin, device_id: str, yes: bool) -> None:
    """Delete all messages in the box of a device.

    They cannot be restored. What is already queued for a connection is still sent. A message that the device gets at
    the beginning of each connection, because it never acknowledges it, goes too.

    Exit status 1 if the box was empty already, or if there is no mailbox.

    \b
      cocoa admin empty doll-1
      cocoa admin empty doll-1 --yes
    """
    if not yes:
        _confirm(f"Delete all messages in the box of {plain(device_id)}?")
    answer = admin.ask("DELETE", *place("devices", device_id, "box"))
    deleted = answer.value["deleted"]
    admin.show(answer, [f"Deleted {_counted(deleted, 'message')}."] if deleted else [])
    if not deleted:
        raise NotFound("there was no message to delete")


def _confirm(question: str) -> None:
    """Raise WrongUsage if there is no terminal to ask at, and AdminError if the answer is no."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty()):
        raise WrongUsage("There is no terminal to ask at: confirm with --yes.")
    # click.confirm() prints a blank on standard output.
    click.echo(f"{question} [y/N] ", err=True, nl=False)
    typed = sys.stdin.buffer.readline()
    if not typed.endswith(b"\n"):
        click.echo(err=True)
    if typed.strip().lower() not in (b"y", b"yes"):
        raise AdminError("nothing was deleted")


# -- what people see


def _device_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    headers = ("DEVICE", "USER", "GROUPS", "SERVER", *_OF_CONNECTION)
    shown: list[list[Cell | str]] = []
    for row in rows:
        who = [plain(row["device_id"]), user_shown(row), plain(row["groups"])]
        shown += [[*who, plain(each["server"]), *_connection_cells(each)] for each in row["connections"]] or [
            [*who, *[NOTHING] * (len(headers) - len(who))]
        ]
    return table(headers, shown, _NUMBERS) if shown else []


def _connection_cells(connection: dict[str, Any]) -> list[Cell | str]:
    """The columns ``_OF_CONNECTION``."""
    return [
        plain(connection["connected_at"]),
        plain(connection["ip"]),
        plain(connection["version"]),
        plain(connection["rtt_ms"]),
        queue_shown(connection["queue"]),
        plain(connection["last_activity"]),
    ]


def user_shown(row: dict[str, Any]) -> str:
    """The user of a device, as --user takes it: a string that looks like an integer is in quotes."""
    user_id = row["user_id"]
    if isinstance(user_id, str):
        looks_different = user_id.lstrip("-").isdecimal() or user_id.startswith('"') or not user_id
        return plain(json.dumps(user_id, ensure_ascii=False)) if looks_different else plain(user_id)
    return plain(user_id)


def queue_shown(queue: int) -> Cell:
    return Cell(plain(queue), "yellow" if queue >= MANY_WAITING else None)


def _about(value: dict[str, Any]) -> Iterator[str]:
    connections, events = value["connections"], value["events"]
    held = f"yes, {_counted(len(connections), 'connection')}"
    state = Cell(held, "green") if connections else Cell("no", "red")
    known: dict[str, str | Cell] = {
        "device": plain(value["device_id"]),
        "user": user_shown(value),
        "groups": plain(value["groups"]),
        "connected": state,
    }
    if value.get("blocked"):  # a server of the last release does not say it
        until = value.get("blocked_until")
        known["blocked"] = Cell("until it is unblocked" if until is None else f"until {plain(until)}", "red")
    known["box"] = _box(value["box"])
    yield from facts(known)
    if connections:
        yield ""
        yield from table(
            ("SERVER", "GENERATION", *_OF_CONNECTION),
            [[plain(each["server"]), plain(each["generation"]), *_connection_cells(each)] for each in connections],
            _NUMBERS,
        )
    if events:
        yield ""
        yield from table(
            ("AT", "SERVER", "EVENT", "CODE"),
            [
                [
                    plain(each["at"]),
                    plain(each["server"]),
                    Cell(plain(each["event"]), _EVENT_COLOURS.get(each["event"])),
                    plain(each["code"]),
                ]
                for each in events
            ],
        )
    if value.get("messages"):  # a server of the last release does not say them
        yield ""
        yield from _message_lines(value["messages"])


def _message_lines(messages: Sequence[dict[str, Any]]) -> list[str]:
    rows: list[list[Cell | str]] = [
        [plain(each["at"]), plain(each["id"]), outcome_shown(each["outcome"]), plain(each["note"] or None)]
        for each in messages
    ]
    return table(("AT", "MESSAGE", "OUTCOME", "NOTE"), rows)


def _box(box: dict[str, Any] | None) -> str:
    if box is None:
        return "unknown: there is no mailbox, or it is unavailable"
    acknowledged = box["acknowledged"]
    lanes = (
        "nothing, ever" if not acknowledged else ", ".join(f"{plain(k)} {plain(v)}" for k, v in acknowledged.items())
    )
    if not box["messages"]:
        return f"empty; acknowledged: {lanes}"
    times = f"oldest {plain(box['oldest'])}, newest {plain(box['newest'])}"
    return f"{_counted(box['messages'], 'message')}, {_counted(box['bytes'], 'byte')}; {times}; acknowledged: {lanes}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# -- times


def _seconds(option: str, text: str) -> float:
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise WrongUsage(f"{option}: {error}") from error


def _whole_seconds(option: str, text: str) -> int:
    seconds = _seconds(option, text)
    if not seconds.is_integer() or seconds > MAX_RECONNECT_S:
        raise WrongUsage(f"{option}: whole seconds, and at most 24h.")
    return int(seconds)


def _in(duration: str) -> str:
    """The time so much later, in RFC 3339."""
    seconds = _seconds("--for", duration)
    try:
        end = datetime.now(UTC) + timedelta(seconds=seconds)
    except OverflowError as error:
        raise WrongUsage("--for: too long; without it the block has no end.") from error
    return end.isoformat(timespec="milliseconds").replace("+00:00", "Z")
