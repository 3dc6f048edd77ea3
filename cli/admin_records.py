"""The record that ``cocoa admin send`` and ``explain`` are about: from a file, or made of options."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final

import click

from cocoa_tornado.admin.requests import user_of
from cocoa_tornado.plain_text import quoted
from cocoa_tornado.rules.addressing import MAX_KEY_BYTES
from cocoa_tornado.rules.durations import parse_duration_s

from .options import WrongUsage

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
_ADDRESSES: Final = ("device_ids", "user", "group", "everyone")
_OPTIONS: Final = (
    click.argument("file", type=click.File("rb"), required=False),
    click.option("--device", "device_ids", multiple=True, metavar="ID", help="For this device; repeatable."),
    click.option("--user", metavar="ID", help="For the devices of this user: 99 is the integer, '\"99\"' the string."),
    click.option("--group", metavar="NAME", help="For the devices of this group."),
    click.option("--all", "everyone", is_flag=True, help="For all devices."),
    click.option(
        "--except", "excluded", multiple=True, metavar="ID", help="With --user, --group or --all: not this; repeatable."
    ),
    click.option("--text", metavar="TEXT", help="The words."),
    click.option(
        "--field",
        "fields",
        multiple=True,
        metavar="NAME=VALUE",
        help="Another field of the record; VALUE is parsed as JSON if possible, else it is a string; repeatable.",
    ),
    click.option(
        "--priority", type=click.Choice(["high", "normal", "low"]), help="high overtakes, low is dropped first."
    ),
    click.option(
        "--ttl",
        metavar="DURATION",
        help="How long it may be delivered: 90s, 15m, 24h. 0: only to the connections that are open now.",
    ),
    click.option("--collapse-key", metavar="KEY", help="Replaces older messages of a device with the same key."),
    click.option("--id", "message_id", metavar="ID", help="Names the message for `cocoa admin trace`."),
)


def record_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options, which :func:`record_of` reads."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def record_of(options: Mapping[str, Any], now: datetime | None = None) -> bytes:
    """Return the record that the options describe, or that is in the file.

    To one device it is addressed by ``device_id``, as backends do it, and by ``to`` otherwise.

    :raises WrongUsage: the options do not fit together
    """
    given = [name for name, value in options.items() if value not in (None, (), False)]
    if "file" in given:
        if len(given) > 1:
            raise WrongUsage("FILE is a whole record: give it or the options, not both.")
        return read_whole(options["file"])
    if len([name for name in given if name in _ADDRESSES]) != 1:
        raise WrongUsage("Give a FILE, or one of --device, --user, --group and --all.")
    if options["excluded"] and options["device_ids"]:
        raise WrongUsage("--except requires --user, --group or --all.")
    record = _address(options)
    if options["excluded"]:
        record["except"] = {"devices": list(options["excluded"])}
    record |= {} if options["text"] is None else {"text": options["text"]}
    record["timestamp"] = (now or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record["success"] = True
    for name in ("priority", "collapse_key"):
        record |= {} if options[name] is None else {name: options[name]}
    record |= {} if options["ttl"] is None else {"ttl": _ttl(options["ttl"])}
    record |= {} if options["message_id"] is None else {"id": _message_id(options["message_id"])}
    record |= dict(_field(text) for text in options["fields"])
    return _encoded(record)


def headers_of(texts: Sequence[str]) -> str | None:
    """Return headers of the form ``NAME=VALUE`` as the JSON object that the API takes; None if there are none. Raises
    WrongUsage."""
    headers: dict[str, str] = {}
    for text in texts:
        name, value = _pair("--header", text)
        if name in headers:
            raise WrongUsage(f"--header {quoted(name)} is given twice: a record with a header twice is invalid.")
        headers[name] = value
    return _encoded(headers).decode("utf-8") if headers else None


def read_whole(file: BinaryIO) -> bytes:
    """Return the contents of a file. Raises WrongUsage if it is too large, or cannot be read."""
    if file.isatty():
        click.echo("Reading from the terminal until Ctrl-D.", err=True)
    try:
        data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise WrongUsage(f"{quoted(str(file.name))}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise WrongUsage(f"{quoted(str(file.name))} is larger than {MAX_FILE_BYTES >> 20} MiB.")
    return data


def _address(options: Mapping[str, Any]) -> dict[str, Any]:
    device_ids = options["device_ids"]
    if len(device_ids) == 1:
        return {"device_id": device_ids[0]}
    if device_ids:
        return {"to": {"devices": list(device_ids)}}
    if options["user"] is not None:
        return {"to": {"user": user_of(options["user"])}}
    return {"to": {"group": options["group"]} if options["group"] is not None else {"all": True}}


def _encoded(value: object) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise WrongUsage("An argument is not UTF-8.") from error


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise WrongUsage(f"{option} {quoted(text)} is not of the form NAME=VALUE.")
    return name, value


def _field(text: str) -> tuple[str, Any]:
    name, value = _pair("--field", text)
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def _message_id(text: str) -> str:
    """A record with any other ``id`` is valid, but has no name in traces."""
    if not 0 < len(os.fsencode(text)) <= MAX_KEY_BYTES:
        raise WrongUsage(f"--id: 1 to {MAX_KEY_BYTES} bytes of UTF-8.")
    return text


def _ttl(text: str) -> int:
    try:
        seconds = parse_duration_s(text)
    except ValueError as error:
        raise WrongUsage(f"--ttl: {error}") from error
    if not seconds.is_integer():
        raise WrongUsage("--ttl: whole seconds.")
    return int(seconds)
