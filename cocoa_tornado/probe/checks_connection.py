"""Checks of a device's connection: handshake, duplicates, pings, close and clean-up."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import Sequence
from typing import Final

from .device import Link
from .judge import described, described_close, judge_refusal
from .session import (
    CLOSE_REPLACED,
    REPLACED,
    DeviceHeldError,
    Idleness,
    Session,
    UnexpectedError,
    UpgradeLostError,
)
from .verdicts import Verdict, failed, passed, skipped
from .wire import Upgrade

MAX_DEVICE_MESSAGE_BYTES: Final = 512 * 1024
_GRACE_S: Final = 0.3  # for a close in transit
_RETRY_S: Final = 0.1
_PING_TOLERANCE_S: Final = 2.0


# --- Handshake -----------------------------------------------------------------------------------------------------


async def handshake(session: Session) -> Verdict:
    """Also opens the device's connection for the following checks, and measures the time of a handshake."""
    deadline = time.monotonic() + session.limits.challenge_s + session.limits.timeout_s / 2
    while True:
        started = time.monotonic()
        try:
            session.link = await session.opened(session.upgrade())
        except DeviceHeldError:
            if not session.take_over or time.monotonic() > deadline:
                raise
            await asyncio.sleep(session.limits.challenge_s / 4)
            continue
        except UpgradeLostError:
            raise
        except UnexpectedError as error:
            key = session.key
            signer = f" (the token is signed with {key.origin})" if key and key.signs(session.device.token) else ""
            raise UnexpectedError(f"{error}{signer}") from error
        session.handshake_s = time.monotonic() - started
        session.key_proven = session.key is not None and session.key.signs(session.device.token)
        return passed()


async def token_in_query(session: Session) -> Verdict:
    return await _admitted(session, "query")


async def token_in_subprotocol(session: Session) -> Verdict:
    return await _admitted(session, "subprotocol", selected="bearer")


async def other_subprotocols(session: Session) -> Verdict:
    return await _admitted(session, protocols=("mqtt", "chat.v2"))


async def own_origin(session: Session) -> Verdict:
    name = f"[{session.target.host}]" if ":" in session.target.host else session.target.host
    try:
        return await _admitted(session, origin=f"http://{name}")
    except UnexpectedError as error:
        hint = "a proxy must pass Host on (nginx: proxy_set_header Host $http_host)"
        raise UnexpectedError(f"{error}; {hint}") from error


async def _admitted(
    session: Session,
    source: str = "header",
    *,
    origin: str | None = None,
    protocols: Sequence[str] = (),
    selected: str | None = None,
) -> Verdict:
    """The device must be admitted with this kind of handshake."""
    await session.let_go()
    upgrade = Upgrade(session.device.token, source, origin, protocols)
    session.link = await session.opened(upgrade, selected)
    await session.let_go()
    return passed()


# --- Duplicates ----------------------------------------------------------------------------------------------------


async def duplicate(session: Session) -> Verdict:
    first = await session.hold()
    response, second = await session.connect()
    if second is not None:
        return failed(await _second_admitted(session, first, second))
    if refusal := judge_refusal(response, 409, "Device already connected", retry_after=True):
        return failed(refusal)
    if not first.is_open or (session.pong_works and not await first.answers_ping()):
        lost = first.lost()
        return failed(f"the second was refused, but the first was closed {described_close(lost.code, lost.reason)}")
    return passed()


async def _second_admitted(session: Session, first: Link, second: Link) -> str:
    """The problem of an admitted second connection."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_S):
            await second.until(lambda: not second.is_open)
    if not second.is_open:
        problem = f"the second was let in (101) and then closed {described_close(second.close_code)}"
        problem += "; the refusal must come before the upgrade"
    elif first.is_open:
        problem = "two connections are open at once (connections_per_device above 1?)"
    else:
        problem = f"the second was let in, and the first closed {described_close(first.close_code)}"
    await session.close(second)
    if not first.is_open:
        await session.let_go()
    return problem


# --- Pings ---------------------------------------------------------------------------------------------------------


async def ping(session: Session) -> Verdict:
    link = await session.hold()
    started = time.monotonic()
    payload = await link.ping()
    try:
        async with asyncio.timeout(session.limits.timeout_s):
            await link.until(lambda: payload in link.pongs or not link.is_open)
    except TimeoutError:
        if link.pongs:
            return failed("a pong came, but with another payload than the ping's")
        return failed(f"no pong within {session.limits.timeout_s:g} s")
    if payload not in link.pongs:
        raise link.lost()
    session.pong_works = True
    return passed(f"after {(time.monotonic() - started) * 1000:.0f} ms")


async def idle(session: Session) -> Verdict:
    """Hold a connection that only answers pings."""
    if session.idle_s <= 0:
        return skipped("not asked for (--idle SECONDS)")
    await session.let_go()
    link = await session.hold()
    due = session.limits.server_ping_s

    def is_over(elapsed_s: float) -> bool:
        waits_for_ping = session.idle_s >= due and not link.server_pings
        return elapsed_s >= max(session.idle_s, due + _PING_TOLERANCE_S if waits_for_ping else 0)

    while link.is_open and not is_over(elapsed := time.monotonic() - link.opened_at):
        left = session.idle_s - elapsed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left if left > 0 else _RETRY_S):
                await link.until(lambda: not link.is_open)
    held_s = (link.closed_at or time.monotonic()) - link.opened_at
    session.idleness = Idleness(held_s, len(link.server_pings))
    return await _idle_verdict(session, link, held_s)


async def _idle_verdict(session: Session, link: Link, held_s: float) -> Verdict:
    """Cases: closed with a close frame, closed without one, silently dead, alive."""
    pings = f"{len(link.server_pings)} pings of the server seen"
    if not link.is_open:
        hint = "" if link.close_code is not None else ": does a proxy cut idle connections?"
        how = described_close(link.close_code, link.close_reason)
        return failed(f"cut after {held_s:.1f} s of idleness, {how}, {pings}{hint}")
    if session.pong_works:
        try:
            async with asyncio.timeout(session.limits.timeout_s):
                alive = await link.answers_ping()
        except TimeoutError:
            alive = False
        if not alive:
            return failed(f"dead after {held_s:.1f} s of idleness, {pings}: does a proxy forget idle connections?")
    return passed(f"held for {held_s:.1f} s, {pings}")


async def server_ping(session: Session) -> Verdict:
    due = session.limits.server_ping_s
    if session.idle_s < due or session.idleness is None:
        return skipped(f"needs --idle {due:g} or more")
    if session.idleness.pings == 0:
        return failed(f"none came within {session.idleness.held_s:.1f} s; one is due every {due:g} s")
    return passed(f"{session.idleness.pings} within {session.idleness.held_s:.1f} s")


# --- Close and clean-up --------------------------------------------------------------------------------------------


async def close_handshake(session: Session) -> Verdict:
    link = await session.hold()
    session.link = None  # keep the same device: the next check is whether it can reconnect
    try:
        async with asyncio.timeout(session.limits.timeout_s):
            answered = await link.close()
    except TimeoutError:
        return failed(f"no close frame came back within {session.limits.timeout_s:g} s")
    if not answered:
        return failed("the connection ended, but no close frame came back")
    session.closing_since = link.close_frame_at
    if link.close_code == CLOSE_REPLACED:
        raise DeviceHeldError(REPLACED)
    if link.close_code not in (1000, 1005):
        return failed(f"the close with 1000 was answered {described_close(link.close_code, link.close_reason)}")
    return passed()


async def clean_up_after_close(session: Session) -> Verdict:
    """The time counts from the gateway's close frame."""
    await session.let_go()
    return await _readmitted(session, session.closing_since or time.monotonic(), patience_s=0.0)


async def clean_up_after_reset(session: Session) -> Verdict:
    link = await session.hold()
    session.link = None
    await link.reset()
    # A reset is not acknowledged; through a proxy, it may arrive after the next handshake.
    return await _readmitted(session, time.monotonic(), patience_s=session.limits.at_once_s)


async def _readmitted(session: Session, started: float, patience_s: float) -> Verdict:
    """The same device must be admitted at once; a gateway that has to challenge first has not cleaned up."""
    while True:
        upgrade = session.upgrade()
        response, link = await session.connect(upgrade)
        elapsed_s = time.monotonic() - started
        if link is not None:
            session.link = link
            if elapsed_s > session.limits.at_once_s + session.handshake_s:
                session.slots_leak = True
                return failed(f"was let in only after {elapsed_s:.1f} s: the old connection still held the slot")
            return passed(f"after {elapsed_s * 1000:.0f} ms")
        if response.status != 409 or elapsed_s >= patience_s:
            break
        await asyncio.sleep(_RETRY_S)
    if response.status != 409:
        return failed(f"answered {described(response)}, expected 101")
    whose = ", or a device with this id has connected" if session.device.given else ""
    session.give_up_device("the gateway has not freed the device's slot")
    return failed(f"answered 409: the old connection still holds the slot{whose}")


async def oversize(session: Session) -> Verdict:
    link = await session.hold()
    session.take_link()
    size = MAX_DEVICE_MESSAGE_BYTES + 1
    head = struct.pack("!BBQ", 0x81, 0x80 | 127, size) + b"\0\0\0\0"  # text, masked with zeros
    begun = 1024
    try:
        # The length alone may cause the close; data sent after that could make TCP discard the close frame.
        await _send_and_settle(link, head + b"x" * begun)
        if link.is_open:
            await _send_and_settle(link, b"x" * (size - begun))
        if problem := await _not_closed(session, link):
            return failed(problem)
    finally:
        await link.drop()
    if link.close_code != 1009:
        how = described_close(link.close_code, link.close_reason)
        return failed(f"the connection ended {how}, expected the close code 1009")
    return passed()


async def invalid_frame(session: Session) -> Verdict:
    link = await session.hold()
    session.take_link()
    try:
        await _send_and_settle(link, b"\x83\x80\0\0\0\0")  # opcode 3 is reserved (RFC 6455)
        if problem := await _not_closed(session, link):
            return failed(problem)
    finally:
        await link.drop()
    return passed(described_close(link.close_code, link.close_reason))


async def _send_and_settle(link: Link, data: bytes) -> None:
    """Send, then wait briefly for a close."""
    with contextlib.suppress(OSError, TimeoutError):
        await link.send_raw(data)
        async with asyncio.timeout(_GRACE_S):
            await link.until(lambda: not link.is_open)


async def _not_closed(session: Session, link: Link) -> str | None:
    """None once the connection is closed; else the problem."""
    if link.is_open and session.pong_works:
        # A pong to a later ping shows that the frame was accepted.
        if await link.answers_ping():
            return "was accepted: the connection goes on"
        return None
    try:
        async with asyncio.timeout(session.limits.timeout_s):
            await link.until(lambda: not link.is_open)
    except TimeoutError:
        return f"the connection is still open after {session.limits.timeout_s:g} s"
    return None
