"""``cocoa admin tail``: what happens to devices, as it happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

import click

from cocoa_tornado.probe.target import connect_problem
from cocoa_tornado.probe.wire import NotHttpError, body_pieces, open_connection, read_body, read_head, request_bytes

from .admin_client import AGENT, AdminClient, AdminError, Unavailable, retry_after_s, route_of
from .admin_options import Admin, admin_command, note, print_json
from .server_sent_events import Comment, Event, EventParser, TooLong
from .terminal import Cell, paint, plain
from .unread import while_read

KINDS: Final = ("connected", "refused", "challenged", "closed", "message")
LOST: Final = "lost"
COLOURS: Final = {"connected": "green", "refused": "red", "closed": "yellow", LOST: "red"}
SILENCE_S: Final = 35.0
"""A stream without a byte for this long has ended: the gateway sends a comment every 10 s."""
FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 30.0
_KIND_COLUMNS: Final = max(len(kind) for kind in KINDS)


class StreamEnded(Exception):
    """The stream has ended, or could not be opened again. ``str()`` says why.

    :ivar wait_s: how long the server asks to wait
    """

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        self.wait_s = wait_s
        super().__init__(reason)


@admin_command("tail")
@click.option("--device", metavar="ID", help="Events of this device.")
@click.option(
    "--user", metavar="ID", help="Events of the devices of this user: 99 is the integer, '\"99\"' the string."
)
@click.option("--group", metavar="NAME", help="Events of the devices of this group.")
@click.option(
    "--event",
    "kinds",
    multiple=True,
    type=click.Choice(KINDS),
    metavar="KIND",
    help=f"Only these: {', '.join(KINDS)}; repeatable.  [default: all]",
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Stop after this many events.  [default: until Ctrl-C]"
)
def tail(
    admin: Admin,
    device: str | None,
    user: str | None,
    group: str | None,
    kinds: tuple[str, ...],
    limit: int | None,
) -> None:
    """Print the events of devices live, until Ctrl-C.

    One line per event, with --json one object: devices that connect, are refused or challenged, or leave, and each
    message that a socket takes; its text requires the scope admin:text. A line "lost" means that events are missing,
    because there were too many, or a server did not answer.

    If the stream ends, the command reconnects, after a delay that grows up to 30 s. Events in between are not shown.
    Standard error says so.

    Exit status 1 if the first connection fails, or once the token has expired.

    \b
      cocoa admin tail --device doll-1
      cocoa admin tail --event refused --event closed
      cocoa admin tail --event message --json | jq -r .text
    """
    query = {"device": device, "user": user, "group": group}
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(while_read(_tail(admin, route_of("/events", query), kinds or KINDS, limit)))


async def _tail(admin: Admin, route: str, kinds: Sequence[str], limit: int | None) -> None:
    left, pause_s, has_begun = limit, FIRST_PAUSE_S, False
    while True:
        try:
            async with contextlib.aclosing(stream(admin.client, route)) as events:
                async for event in events:
                    if event is None:
                        if has_begun:
                            note("Connected again.")
                        pause_s, has_begun = FIRST_PAUSE_S, True
                    elif _print(event.data, kinds, as_json=admin.as_json) and left is not None:
                        left -= 1
                        if not left:
                            return
        except StreamEnded as error:
            if not has_begun:
                raise AdminError(str(error)) from error
            wait_s = max(pause_s, error.wait_s)
            note(f"{error}; connecting again in {wait_s:g} s. What happens until then is not shown.")
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)


async def stream(client: AdminClient, route: str) -> AsyncGenerator[Event | None, None]:
    """Open the stream: yield None once it has begun, then each event.

    :raises StreamEnded: it has ended, or the server cannot be reached or has no room
    :raises AdminError: the server refuses it for good
    """
    writer: asyncio.StreamWriter | None = None
    reason = f"{client.where} ended the stream"
    try:
        async with asyncio.timeout(client.timeout_s):
            reader, writer = await open_connection(client.target)
            writer.write(request_bytes("GET", client.target.path(route), client.target, client.headers, agent=AGENT))
            head = await read_head(reader)
            if head.status != 200:
                response = await read_body(reader, head)
                try:
                    client.judge(response)
                except Unavailable as error:
                    raise StreamEnded(error.message, retry_after_s(response) or 0.0) from error
        if (head.header("Content-Type") or "").split(";")[0] != "text/event-stream":
            raise AdminError(f"{client.where}: the answer is not an event stream")
        yield None
        parser, pieces = EventParser(), body_pieces(reader, head)
        while True:
            async with asyncio.timeout(SILENCE_S):
                data = await anext(pieces, None)
            if data is None:
                raise StreamEnded(reason)
            for each in parser.feed(data):
                if isinstance(each, Event):
                    yield each
                elif isinstance(each, Comment) and each.text:
                    reason = f"{client.where} ended the stream: {plain(each.text)}"
    except TimeoutError as error:
        raise StreamEnded(f"{client.where}: no answer in time") from error
    except OSError as error:
        raise StreamEnded(connect_problem(client.target, error)) from error
    except (NotHttpError, TooLong) as error:
        raise StreamEnded(f"{client.where}: {error}") from error
    finally:
        if writer is not None:
            writer.transport.abort()


def _print(data: str, kinds: Sequence[str], *, as_json: bool) -> bool:
    """Print an event, if it is of one of these kinds or says that some were lost. Return whether it was of these."""
    event = json.loads(data)
    if event["event"] not in (*kinds, LOST):
        return False
    if as_json:
        print_json(data)
    else:
        click.echo(line_of(event))
    sys.stdout.flush()
    return bool(event["event"] != LOST)


def line_of(event: Mapping[str, Any]) -> str:
    """One event for people."""
    kind = event["event"]
    padded = paint(Cell(plain(kind).ljust(_KIND_COLUMNS), COLOURS.get(kind)))
    parts = [plain(event["at"]), plain(event["server"]), padded]
    if kind == LOST:
        number = event["lost"]
        return "  ".join([*parts, "events were lost" if number is None else f"{number:,} events were lost"])
    parts.append(plain(event["device_id"]))
    if kind != "message":
        return "  ".join([*parts, *([] if event["code"] is None else [plain(event["code"])])])
    about = [
        *([] if event["id"] is None else [f"id {plain(event['id'])}"]),
        *([] if event["priority"] == "normal" else [plain(event["priority"])]),
        *(["interim"] if event["interim"] else []),
        f"{event['length']:,} bytes",
        *([] if event["age_ms"] is None else [f"{event['age_ms']:,} ms old"]),
    ]
    text = [plain(event["text"])] if event.get("text") is not None else []
    return "  ".join([*parts, ", ".join(about), *text])
