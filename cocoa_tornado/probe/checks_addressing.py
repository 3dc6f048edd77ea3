"""Checks of what a device can see of addressing: priorities, groups, and that it cannot address others itself."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from .checks_delivery import collect
from .credentials import minted, random_device_id, random_group
from .delivery import BackendPublisher, PublishUnavailableError, new_record, post_record, spacious_json
from .device import Link
from .judge import judge_options_removed, judge_priorities, judge_received, judge_refusal
from .session import Session, UnexpectedError
from .verdicts import Verdict, failed, judged, passed, skipped
from .wire import Upgrade

# Fewer than eight high ones, or they need not go first (judge_priorities). A normal one last.
PRIORITIES: Final = ("normal", "high", "normal", "normal", "low", "high", "normal", "low", "high", "normal")
TO_GROUP: Final = 2


async def priority(session: Session) -> Verdict:
    link = await session.hold()
    link.received()
    sent: list[tuple[str, str]] = []
    try:
        for number, level in enumerate(PRIORITIES):
            record = new_record(session.device, f"number {number}, {level}", {"priority": level})
            if problem := await session.publisher.publish(session.device, spacious_json(record)):
                return failed(problem)
            sent.append((str(record["session_id"]), level))
    except PublishUnavailableError as error:
        return skipped(str(error))
    sessions = [session_id for session_id, _ in sent]
    messages = await collect(session, link, sessions)
    return judged(judge_priorities(messages, sent) or judge_options_removed(messages, sessions))


async def addressing(session: Session) -> Verdict:
    """No other device gets these records even if the gateway wrongly accepts them."""
    device_id = session.device.device_id
    addresses: tuple[dict[str, object], ...] = (
        {"to": {"device": device_id}},
        {"to": {"group": random_group()}},
        {"except": {"devices": [device_id]}},
    )
    for address in addresses:
        record = spacious_json(new_record(session.device, "to be refused", address))
        try:
            response = await post_record(session.target, session.device, record)
        except PublishUnavailableError as error:
            return skipped(str(error))
        if response.status == 404:
            return passed("the gateway takes no records over HTTP")
        if problem := judge_refusal(response, 403, "Devices can't address others"):
            return failed(f"a record with {next(iter(address))}: {problem}")
    return passed()


async def group(session: Session) -> Verdict:
    """The member is a new device, in a group of its own. The probe's device is not in it."""
    if session.backend is None:
        return skipped("only a backend addresses a group: pass --broker kafka://HOST:PORT")
    if session.key is None or not session.key_proven:
        return skipped("no key of the gateway's to sign a token with a group (--secret)")
    name = random_group()
    session.member = minted(session.key, random_device_id(), time.time(), groups=(name,))
    outsider = await session.hold()
    member = await session.opened(Upgrade(session.member.token))
    try:
        return await _group(session, session.backend, name, member, outsider)
    finally:
        await session.close(member)


async def _group(session: Session, backend: BackendPublisher, name: str, member: Link, outsider: Link) -> Verdict:
    assert session.member is not None  # made by group()
    outsider.received()
    excepted = {"to": {"group": name}, "except": {"devices": [session.member.device_id]}}
    withheld = await _published(session, backend, name, excepted)
    sent = [await _published(session, backend, name, {"to": {"group": name}}) for _ in range(TO_GROUP)]
    messages = await collect(session, member, sent)
    await asyncio.sleep(session.limits.quiet_s)
    messages += member.received()
    problem = judge_received(messages, sent, [withheld], in_order=True) or judge_options_removed(messages, sent)
    if problem:
        return failed(f"the member {problem}")
    if problem := judge_received(outsider.received(), [], [withheld, *sent]):
        return failed(f"a device that is not in the group {problem}")
    return passed(f"{TO_GROUP} messages")


async def _published(session: Session, backend: BackendPublisher, name: str, address: dict[str, object]) -> str:
    """Publish a record without ``device_id`` and return its session id.

    :raises UnexpectedError: it is rejected
    """
    record = new_record(session.device, "for a group", address)
    del record["device_id"]
    if problem := await backend.publish_to_others(name, spacious_json(record)):
        raise UnexpectedError(problem)
    return str(record["session_id"])
