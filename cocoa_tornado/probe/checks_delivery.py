"""Checks of delivery: to this device, in order, and to no other."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from .credentials import Device
from .delivery import PublishUnavailableError, new_record, spacious_json
from .device import Link, Message
from .judge import judge_message, judge_received, quoted, session_of
from .session import DeviceHeldError, Session, UnexpectedError
from .verdicts import Verdict, failed, judged, passed, skipped
from .wire import Upgrade

# Characters of all lengths in UTF-8, and all that JSON must or must not escape.
TEXT = 'Probe: caf\u00e9, \u4f60\u597d, \U0001f34d, "quoted", \\ and / and <tab\t>'
ORDERED = 5
EACH = 2


async def delivery(session: Session) -> Verdict:
    link = await session.hold()
    record = new_record(session.device, TEXT, {"type": "to be replaced", "probe": {"kept": [1, None, True]}})
    link.received()
    started = time.monotonic()
    try:
        problem = await session.publisher.publish(session.device, spacious_json(record))
    except PublishUnavailableError as error:
        return skipped(str(error))
    if problem:
        return failed(problem)
    message, others = await _await_session(session, link, str(record["session_id"]))
    if message is None:
        hint = f"; something else did: {quoted(others[-1])}" if others else ""
        return failed(f"published, but nothing arrived within {session.limits.timeout_s:g} s{hint}")
    elapsed_ms = (time.monotonic() - started) * 1000
    return judged(judge_message(message, record), f"in {elapsed_ms:.0f} ms, publishing included")


async def order(session: Session) -> Verdict:
    link = await session.hold()
    link.received()
    try:
        sent = [await published(session, session.device, f"number {number}") for number in range(ORDERED)]
    except PublishUnavailableError as error:
        return skipped(str(error))
    messages = await collect(session, link, sent)
    return judged(judge_received(messages, sent, in_order=True))


async def isolation(session: Session) -> Verdict:
    if session.other is None:
        return skipped("needs a second device (--token twice, or --secret)")
    link = await session.hold()
    try:
        other_link = await session.opened(Upgrade(session.other.token))
    except DeviceHeldError:
        return failed("a live device holds the second id")
    try:
        return await _isolated(session, link, other_link)
    finally:
        await session.close(other_link)


async def _isolated(session: Session, link: Link, other_link: Link) -> Verdict:
    assert session.other is not None  # checked by isolation()
    link.received()
    mine: list[str] = []
    theirs: list[str] = []
    try:
        for number in range(EACH):
            mine.append(await published(session, session.device, f"for the first, {number}"))
            theirs.append(await published(session, session.other, f"for the second, {number}"))
    except PublishUnavailableError as error:
        return skipped(str(error))
    first, second = await asyncio.gather(collect(session, link, mine), collect(session, other_link, theirs))
    await asyncio.sleep(session.limits.quiet_s)
    first, second = [*first, *link.received()], [*second, *other_link.received()]
    for name, problem in (
        ("first", judge_received(first, mine, theirs)),
        ("second", judge_received(second, theirs, mine)),
    ):
        if problem:
            return failed(f"the {name} device {problem}")
    return passed(f"{2 * EACH} messages")


async def published(session: Session, device: Device, text: str) -> str:
    """Publish a record and return its session id. Raises :class:`UnexpectedError` if it is rejected."""
    record = new_record(device, text)
    if problem := await session.publisher.publish(device, spacious_json(record)):
        raise UnexpectedError(problem)
    return str(record["session_id"])


async def _await_session(session: Session, link: Link, session_id: str) -> tuple[Message | None, Sequence[Message]]:
    """The message of a session, or None if it does not arrive in time; and the last ones before it."""
    others: list[Message] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(session.limits.timeout_s):
            while True:
                message = await link.receive()
                if session_of(message) == session_id:
                    return message, others
                others = [*others[-9:], message]
    return None, others


async def collect(session: Session, link: Link, sessions: Sequence[str]) -> list[Message]:
    """All messages until those of all ``sessions`` have arrived, within the time limit."""
    messages: list[Message] = []
    missing = set(sessions)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(session.limits.timeout_s):
            while missing:
                messages.append(await link.receive())
                missing.discard(session_of(messages[-1]) or "")
    return messages
