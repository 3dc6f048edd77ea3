"""``cocoa admin quarantine`` and ``requeue``."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Final

import click

from cocoa_tornado.plain_text import quoted

from .admin_client import AdminError, NotFound
from .admin_options import Admin, admin_command, note
from .admin_records import read_whole
from .terminal import NOTHING, Cell, Row, facts, plain, table, without_controls

MAX_LIMIT: Final = 1_000
SHOWN: Final = 60
"""Characters of a value in the list."""
_PLACE: Final = re.compile(r"([0-9]{1,19})/([0-9]{1,19})")


class Place(click.ParamType[tuple[int, int]]):
    """A partition and an offset of the quarantine topic."""

    name = "partition/offset"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        found = _PLACE.fullmatch(str(value))
        if found is None:
            self.fail(f"{quoted(str(value))} is not of the form PARTITION/OFFSET, such as 0/17.", param, ctx)
        return int(found[1]), int(found[2])


@admin_command("quarantine")
@click.argument("place", metavar="[PARTITION/OFFSET]", type=Place(), required=False)
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_LIMIT),
    metavar="N",
    help="The most records to list.  [default: 100]",
)
@click.option("--value", "only_value", is_flag=True, help="Print the value of the record, and nothing else.")
def quarantine(admin: Admin, place: tuple[int, int] | None, limit: int | None, only_value: bool) -> None:
    """List the records that were rejected, or show one.

    The newest comes first. AT is the time of the quarantine, FROM the record on its own topic. Values and headers
    require the scope admin:text: 16 KiB of each value in the list, 2 MiB of a single one. `cocoa admin requeue` puts a
    record back.

    Exit status 1 if there is no such record.

    \b
    Look, correct, send again:
      cocoa admin quarantine
      cocoa admin quarantine 0/17 --value > fixed.json
      cocoa admin requeue 0/17 --value fixed.json
    """
    if place is None:
        if only_value:
            raise click.UsageError("--value requires PARTITION/OFFSET.")
        answer = admin.ask("GET", "/quarantine", {"limit": limit or 100})
        records = answer.value["records"]
        admin.show(answer, _listed(records))
        if not records and not admin.as_json:
            note("No record is in quarantine.")
        return
    if limit is not None:
        raise click.UsageError("--limit and PARTITION/OFFSET are mutually exclusive.")
    try:
        answer = admin.ask("GET", f"/quarantine/{place[0]}/{place[1]}")
    except NotFound as error:
        raise _no_record(place) from error
    if only_value:
        _print_value(answer.value)
    else:
        admin.show(answer, _about(answer.value))


@admin_command("requeue")
@click.argument("place", metavar="PARTITION/OFFSET", type=Place())
@click.option(
    "--value",
    type=click.File("rb"),
    metavar="FILE",
    help="A corrected value; - is standard input.  [default: unchanged]",
)
def requeue(admin: Admin, place: tuple[int, int], value: BinaryIO | None) -> None:
    """Put a record of the quarantine back on its topic, once.

    `cocoa admin quarantine` lists PARTITION/OFFSET. With --value, the record's cocoa.* headers are dropped. A record
    that is still invalid is not requeued, and you can try again. The command prints the id for `cocoa admin trace`.

    Exit status 1 if there is no such record, if it was requeued before, or if it is still invalid.

    \b
      cocoa admin requeue 0/17
      cocoa admin requeue 0/17 --value fixed.json
    """
    partition, offset = place
    body = None if value is None else read_whole(value)
    if body == b"":
        raise click.UsageError("--value: the file is empty.")
    try:
        answer = admin.ask("POST", f"/quarantine/{partition}/{offset}/requeue", body=body or b"")
    except NotFound as error:
        raise _no_record(place) from error
    admin.show(answer, [plain(answer.value["id"])])


def _no_record(place: tuple[int, int]) -> NotFound:
    return NotFound(f"the quarantine has no record at {place[0]}/{place[1]}")


def _print_value(record: Mapping[str, Any]) -> None:
    value = record["value"]
    if record["is_cut"]:
        raise AdminError(f"the value has {record['value_bytes']:,} bytes, more than the API shows: read it from Kafka")
    if value is None:
        raise AdminError("the token does not permit reading values: Missing scope admin:text")
    if "\ufffd" in value:  # it stands for bytes that are not UTF-8
        raise AdminError("the value is not UTF-8: read it from Kafka")
    # A file gets the value as it is. A terminal must not obey it.
    text: str = without_controls(value) if sys.stdout.isatty() else value
    click.echo(text.encode("utf-8", "backslashreplace"), nl=sys.stdout.isatty())


def _listed(records: Sequence[Mapping[str, Any]]) -> list[str]:
    headers = ("PLACE", "AT", "REASON", "FROM", "KEY", "BYTES", "REQUEUED", "VALUE")
    rows: list[Row] = [
        [
            _place(record["partition"], record["offset"]),
            plain(record["timestamp"]),
            plain(record["reason"]),
            _source(record),
            plain(record["key"]),
            f"{record['value_bytes']:,}",
            _requeued(record),
            plain(record["value"], SHOWN),
        ]
        for record in records
    ]
    return table(headers, rows, ("BYTES",)) if rows else []


def _about(record: Mapping[str, Any]) -> list[str]:
    pairs: dict[str, Cell | str] = {
        "place": _place(record["partition"], record["offset"]),
        "at": plain(record["timestamp"]),
        "reason": Cell(plain(record["reason"]), "red"),
        "from": _source(record),
        "key": plain(record["key"]),
        "requeued": _requeued(record),
    }
    pairs |= {f"header {plain(each['name'])}": plain(each["value"]) for each in record["headers"]}
    pairs |= {f"dropped {plain(name)}": f"{size:,} bytes" for name, size in record["dropped"].items()}
    pairs["bytes"] = f"{record['value_bytes']:,}"
    pairs["value"] = plain(record["value"]) + (" (cut)" if record["is_cut"] else "")
    return facts(pairs)


def _requeued(record: Mapping[str, Any]) -> Cell | str:
    return "unknown" if record["requeued"] is None else Cell("yes", "green") if record["requeued"] else "no"


def _source(record: Mapping[str, Any]) -> str:
    if record["topic"] is None:
        return NOTHING
    return "/".join(plain(record[name]) for name in ("topic", "source_partition", "source_offset"))


def _place(partition: int, offset: int) -> str:
    return f"{partition}/{offset}"
