"""``cocoa admin send``, ``trace`` and ``explain``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from .admin_client import AdminError, NotFound, place
from .admin_options import Admin, Timestamp, admin_command, note
from .admin_records import headers_of, record_of, record_options
from .terminal import Cell, Row, facts, plain, table

MEANINGS: Final = {
    "written": "a socket of the device has taken it",
    "acknowledged": "the device has acknowledged it, or a later message",
    "waiting": "in the device's box; without a mailbox, in the queue of its connection",
    "not_connected": "no connection, and not stored (no mailbox, or ttl 0); or the device has left the group or user",
    "expired": "its ttl, or that of the mailbox, ended first",
    "overflow": "dropped from a full box or queue",
    "collapsed": "a newer message with its collapse_key has replaced it",
    "superseded": "it came to a server that no longer held the device, and no box keeps it",
    "slow_consumer": "the connection was closed with 1013: the device reads too slowly",
    "quarantined": "the record is invalid: see cocoa admin quarantine",
    "fault": "an internal error, which the log has, or a server was lost",
    "others": "devices beyond the first 1,000",
    None: "not known: under way, or from before the servers started",
}
GOOD: Final = ("written", "acknowledged")
WAITING: Final = ("waiting", None)
WOULD_COLOURS: Final = {"send": "green", "store": "yellow", "drop": "red"}


@admin_command("send")
@record_options
def send(admin: Admin, **options: Any) -> None:
    """Publish a message, as a backend does.

    FILE contains a whole record (docs/records.rst), at most 64 KiB; - is standard input. Without FILE, the options make
    the record. The command prints the record's id once the brokers have acknowledged it; `cocoa admin trace ID` shows
    what happened to the message.

    Exit status 1 if the record is invalid (then it was not published), or if the brokers are unavailable.

    \b
      cocoa admin send --device doll-1 --text "Good night"
      cocoa admin send --group kitchen --except doll-2 --text "Dinner" --ttl 10m --priority high
      cocoa admin send record.json
    """
    answer = admin.ask("POST", "/messages", body=record_of(options))
    admin.show(answer, [plain(answer.value["id"])])


@admin_command("trace")
@click.argument("message_id", metavar="ID")
def trace(admin: Admin, message_id: str) -> None:
    """Show what happened to a message.

    The first line is the summary; then come the steps of the message, and its outcome for each device.

    ID is the message's own id, or TOPIC/PARTITION/OFFSET of any record. The servers remember the last messages
    (trace_bytes) until they restart; older ones are searched for on the results topic, in the boxes and in the
    quarantine. The text of the message requires the scope admin:text.

    Exit status 1 if it is not found; the line on standard error says which places were searched.

    \b
      cocoa admin trace 3f0c9a
      cocoa admin trace transcription.results/0/4711
    """
    answer = admin.ask("GET", *place("messages", message_id))
    value = answer.value
    is_known = bool(value["steps"] or value["devices"] or value["counts"])
    admin.show(answer, _traced(value) if is_known else [])
    if not is_known:
        raise NotFound(plain(value.get("summary") or "no server that answered remembers this message"))


@admin_command("explain")
@record_options
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="NAME=VALUE",
    help="A Kafka header of the record, such as cocoa.ttl=60, also of one in FILE; repeatable.",
)
@click.option(
    "--timestamp",
    type=Timestamp(),
    metavar="TIME",
    help="The record's Kafka timestamp, from which its ttl counts, in RFC 3339: 2030-01-01T00:00:00Z.  [default: now]",
)
def explain(admin: Admin, headers: tuple[str, ...], timestamp: str | None, **options: Any) -> None:
    """Show what would happen to a record if it were published now. Sends nothing.

    The record is in FILE (- is standard input), or the options make it, as for `cocoa admin send`. A header
    cocoa.<field> overrides the field of the value (docs/records.rst).

    Exit status 1 if the record is invalid, or would reach no device and no box.

    \b
      cocoa admin explain --group kitchen --text "Dinner"
      cocoa admin explain record.json
      cocoa admin explain record.json --header cocoa.ttl=60 --header 'cocoa.to={"group":"kitchen"}'
      cocoa admin explain record.json --timestamp 2030-01-01T00:00:00Z
    """
    query = {"headers": headers_of(headers), "timestamp": timestamp}
    answer = admin.ask("POST", "/explain", query, body=record_of(options))
    value = answer.value
    if not value["valid"]:
        admin.show(answer, [])
        raise AdminError(f"{plain(value['message'])}: it would be quarantined ({plain(value['reason'])})")
    admin.show(answer, _explained(value))
    if value["more"]:
        note(f"There are more devices: the first {len(value['devices']):,} are shown and counted.")
    if not any(each["would"] in ("send", "store") for each in value["devices"]):
        raise NotFound("it would reach no device")


# -- what people see


def _traced(value: Mapping[str, Any]) -> Iterator[str]:
    if value.get("summary"):
        yield plain(value["summary"])
        yield ""
    about = {"message": f"{plain(value['id'])}, {value['length']:,} bytes"} if "length" in value else {}
    about |= {"text": plain(value["text"])} if "text" in value else {}
    if about:
        yield from facts(about)
        yield ""
    yield from table(
        ("AT", "SERVER", "STEP"), [[plain(each[name]) for name in ("at", "server", "step")] for each in value["steps"]]
    )
    yield ""
    if value["devices"]:
        notes = value.get("notes") or {}
        rows: list[Row] = [
            [plain(each["device_id"]), outcome_shown(each["outcome"]), plain(notes.get(each["device_id"]))]
            for each in value["devices"]
        ]
        columns = 3 if notes else 2
        yield from table(("DEVICE", "OUTCOME", "NOTE")[:columns], [row[:columns] for row in rows])
        yield ""
    counts = Counter(each["outcome"] for each in value["devices"]) | Counter(value["counts"])
    yield from table(
        ("OUTCOME", "DEVICES", "MEANING"),
        [[outcome_shown(name), f"{number:,}", MEANINGS.get(name, "")] for name, number in counts.items()],
        ("DEVICES",),
    )


def outcome_shown(name: str | None) -> Cell:
    colour = "green" if name in GOOD else "yellow" if name in WAITING else None if name == "others" else "red"
    return Cell("unknown" if name is None else plain(name), colour)


def _explained(value: Mapping[str, Any]) -> Iterator[str]:
    if value["devices"]:
        rows: list[Row] = [
            [plain(each["device_id"]), Cell(plain(each["would"]), WOULD_COLOURS.get(each["would"])), plain(each["why"])]
            for each in value["devices"]
        ]
        yield from table(("DEVICE", "WOULD", "WHY"), rows)
        yield ""
        yield ", ".join(f"{plain(name)}: {number:,}" for name, number in value["counts"].items())
