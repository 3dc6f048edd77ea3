"""``cocoa admin overview``: the state of the servers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from .admin_options import Admin, admin_command
from .terminal import Cell, Row, plain, table

Servers = Sequence[Mapping[str, Any]]

TOTALS: Final = {
    "read": "records read",
    "delivered": "messages delivered",
    "kept": "messages kept for later",
    "not_connected": "messages for no connected device",
    "dropped": "messages dropped",
    "lost": "messages expired or dropped before they were received",
    "quarantined": "records quarantined",
    "other_key": "records with the key of another device",
    "from_devices": "messages from devices",
    "accepted": "connections accepted",
    "refused": "connections refused",
    "closed": "connections closed",
    "fenced": "leases lost",
    "declared_dead": "servers declared dead",
    "canaries_lost": "canary messages lost",
    "leaked": "messages that reached the wrong canary",
}
FAULTS: Final = frozenset(
    {"lost", "dropped", "quarantined", "other_key", "fenced", "declared_dead", "canaries_lost", "leaked"}
)
"""Worth a color if they have happened within the last hour."""
REASONS: Final = {"refused": "REFUSED", "closed": "CLOSED"}
NUMBERS: Final = ("LAST HOUR", "SINCE THE START")


@admin_command("overview")
def overview(admin: Admin) -> None:
    """Show the state of the servers, and their counts.

    A server that is not ready has its failing parts instead of "ready". BEHIND is the number of records that it has not
    read. The counts are the sum over all servers, for the last hour and since each start, without canary messages;
    those of a server of an earlier release all count as of the last hour. REFUSED has the reasons of refused
    handshakes, CLOSED the close codes.

    \b
      cocoa admin overview
      cocoa admin overview --json | jq '.servers[].recent.counters'
    """
    answer = admin.ask("GET", "/overview")
    admin.show(answer, list(_lines(answer.value["servers"])))


def _lines(servers: Servers) -> Iterator[str]:
    rows: list[Row] = []
    for row in servers:
        figures = [plain(row[name]) for name in ("connections", "devices", "lag")]
        rows.append([plain(row["server"]), _state(row), plain(row["version"]), plain(row["started_at"]), *figures])
    headers = ("SERVER", "STATE", "VERSION", "STARTED", "CONNECTIONS", "DEVICES", "BEHIND")
    yield from table(headers, rows, headers[-3:])
    yield ""
    total, recent = _counted(servers, "counters")
    rows = [
        [text, Cell(f"{recent[name]:,}", "yellow" if recent[name] and name in FAULTS else None), f"{total[name]:,}"]
        for name, text in TOTALS.items()
    ]
    yield from table(("COUNTED", *NUMBERS), rows, NUMBERS)
    for name, title in REASONS.items():
        total, recent = _counted(servers, name)
        if total:
            yield ""
            rows = [[plain(reason), f"{recent[reason]:,}", f"{count:,}"] for reason, count in total.most_common()]
            yield from table((title, *NUMBERS), rows, NUMBERS)
    waiting = next((row for row in servers if row["waiting"] is not None), None)
    if waiting is not None:
        yield ""
        messages = f"{waiting['waiting']:,} message{'' if waiting['waiting'] == 1 else 's'}"
        yield f"Kept in boxes, written ones included: {messages}, {waiting['waiting_bytes']:,} bytes"


def _state(row: Mapping[str, Any]) -> Cell:
    return Cell(f"not ready: {plain(row['failing'])}", "red") if row["failing"] else Cell("ready", "green")


def _counted(servers: Servers, name: str) -> tuple[Counter[str], Counter[str]]:
    """The counts of all servers: since the start, and within the last hour."""
    total, recent = Counter[str](), Counter[str]()
    for row in servers:
        total.update(row.get(name) or {})
        recent.update((row.get("recent") or row).get(name) or {})
    for counts in (total, recent):  # a canary message is a record that one of the servers has read
        if "read" in counts:
            counts["read"] = max(0, counts["read"] - counts["canaries"])
    return total, recent
