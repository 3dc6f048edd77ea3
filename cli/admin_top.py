"""``cocoa admin top``: the devices to look at first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from .admin_devices import queue_shown
from .admin_options import Admin, admin_command, note
from .terminal import Row, plain, table

MAX_LIMIT: Final = 100
READERS: Final = {"queues": "SLOWEST READERS", "round_trips": "LONGEST ROUND TRIPS"}
REPEATS: Final = {
    "reconnects": "CONNECTS AGAIN AND AGAIN",
    "loops": "GETS THE SAME MESSAGE AGAIN AND AGAIN",
    "full_boxes": "BOX IS FULL",
}
RECORDS: Final = {"read_again": "READ AGAIN"}


@admin_command("top")
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_LIMIT),
    default=10,
    show_default=True,
    metavar="N",
    help="The most devices in each list.",
)
def top(admin: Admin, limit: int) -> None:
    """List the devices that need attention.

    The lists are: the slowest readers, with the messages that their sockets have not taken; the longest round trips of
    a ping; devices whose connections are repeatedly refused or short; devices that get the same message on each
    connection because they never acknowledge it; devices whose full boxes have dropped messages that they had not
    received, within the last day; and records that were read more than once, as far as the servers remember: READ AGAIN
    names the first of them for `cocoa admin trace`. Empty lists are not shown.

    \b
      cocoa admin top
      cocoa admin top --limit 100 --json | jq -r '.reconnects[].device_id'
    """
    answer = admin.ask("GET", "/top", {"limit": limit})
    lines = list(_lists(answer.value))
    admin.show(answer, lines)
    if not lines and not admin.as_json:
        note("No device needs attention.")


def _lists(value: Mapping[str, Any]) -> Iterator[str]:
    found = [(name, title) for name, title in (READERS | REPEATS | RECORDS).items() if value.get(name)]
    for at, (name, title) in enumerate(found):  # a server of the previous release has fewer lists
        if at:
            yield ""
        if name in READERS:
            rows: list[Row] = [
                [plain(row["device_id"]), plain(row["server"]), queue_shown(row["queue"]), plain(row["rtt_ms"])]
                for row in value[name]
            ]
            yield from table((title, "SERVER", "QUEUE", "RTT MS"), rows, ("QUEUE", "RTT MS"))
        elif name in RECORDS:
            rows = [
                [*map(plain, (row["id"], row["records"], row["count"], row["servers"], row["last"]))]
                for row in value[name]
            ]
            yield from table((title, "RECORDS", "TIMES", "SERVERS", "LAST"), rows, ("RECORDS", "TIMES"))
        else:
            rows = [
                [plain(row["device_id"]), f"{row['count']:,}", plain(row["since"]), plain(row["last"])]
                for row in value[name]
            ]
            count = "DROPPED" if name == "full_boxes" else "TIMES"
            yield from table((title, count, "SINCE", "LAST"), rows, (count,))
