"""Checks of a deployment of several servers: what one server promises holds whichever server a device is connected to.

The device's own connection is to the first server, ``Session.target``; the others are ``Session.also``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .between import is_blocked
from .checks_delivery import EACH, ORDERED, collect, published
from .delivery import PublishUnavailableError
from .device import Link
from .judge import described, judge_ready, judge_received, judge_refusal
from .session import DeviceHeldError, Session, UnexpectedError
from .target import Target, connect_problem
from .verdicts import Verdict, failed, passed, skipped
from .wire import NotHttpError, Upgrade, exchange

_RETRY_S = 0.1


async def ready(session: Session) -> Verdict:
    for server in session.also:
        async with _named(session, server):
            response = await exchange(server, "GET", "/api/v1/ready")
        if is_blocked(response):
            return skipped(
                f"{server.host_header} answered {described(response)}: it does not let it be seen from outside"
            )
        if problem := judge_ready(response):
            return failed(f"{server.host_header}: {problem}")
    return passed(f"{len(session.also)} besides the first")


async def duplicate(session: Session) -> Verdict:
    """While the device is connected to one server, each other server refuses it, and it stays connected."""
    servers = [session.target, *session.also]
    await session.let_go()
    for home in servers:
        async with _connected(session, home) as first:
            for server in servers:
                if server is not home and (problem := await _refused(session, first, server)):
                    return failed(f"connected to {home.host_header}, {server.host_header} {problem}")
    return passed(f"{len(servers) * (len(servers) - 1)} pairs")


async def _refused(session: Session, first: Link, server: Target) -> str | None:
    async with _named(session, server):
        response, second = await session.connect(target=server)
    if second is not None:
        await session.close(second)
        state = "stays open" if first.is_open else "was closed"
        return f"let the second connection in (101), and the first {state}: do both have the same presence?"
    if problem := judge_refusal(response, 409, "Device already connected", retry_after=True):
        return problem
    if not first.is_open or (session.pong_works and not await first.answers_ping()):
        return "refused the second connection, but the first was closed"
    return None


async def delivery(session: Session) -> Verdict:
    """Records arrive once and in order on whichever server the device is."""
    await session.let_go()
    for server in session.also:
        async with _connected(session, server) as link:
            try:
                sent = [await published(session, session.device, f"number {number}") for number in range(ORDERED)]
            except PublishUnavailableError as error:
                return skipped(str(error))
            messages = await collect(session, link, sent)
            await asyncio.sleep(session.limits.quiet_s)
            if problem := judge_received([*messages, *link.received()], sent, in_order=True):
                return failed(f"connected to {server.host_header}, the device {problem}")
    return passed(f"{len(session.also) * ORDERED} messages")


async def isolation(session: Session) -> Verdict:
    """Two devices on two servers each get their own messages."""
    if session.other is None:
        return skipped("needs a second device (--token twice, or --secret)")
    link = await session.hold()
    link.received()
    for server in session.also:
        try:
            async with _named(session, server):
                other_link = await session.opened(Upgrade(session.other.token), target=server)
        except DeviceHeldError:
            return failed("a live device holds the second id")
        try:
            mine = [await published(session, session.device, f"for the first, {number}") for number in range(EACH)]
            theirs = [await published(session, session.other, f"for the second, {number}") for number in range(EACH)]
            first, second = await asyncio.gather(collect(session, link, mine), collect(session, other_link, theirs))
            await asyncio.sleep(session.limits.quiet_s)
            received = [("first", [*first, *link.received()], mine, theirs)]
            received.append(("second", [*second, *other_link.received()], theirs, mine))
        except PublishUnavailableError as error:
            return skipped(str(error))
        finally:
            await session.close(other_link)
        for name, messages, own, foreign in received:
            if problem := judge_received(messages, own, foreign):
                return failed(f"with the second device connected to {server.host_header}, the {name} {problem}")
    return passed(f"{2 * EACH * len(session.also)} messages")


async def clean_up(session: Session) -> Verdict:
    """A device that leaves one server can connect to another one at once, after a close as after a reset."""
    await session.let_go()
    home = session.target
    for server in (*session.also, session.target):
        for way in ("close", "reset"):
            async with _named(session, home):
                link = await session.opened(session.upgrade(), target=home)
            if way == "close":
                await session.close(link)
            else:
                await link.reset()
            # A reset is not acknowledged; through a proxy, it may arrive after the next handshake.
            patience_s = session.limits.at_once_s if way == "reset" else 0.0
            if problem := await _not_readmitted(session, server, patience_s):
                return failed(f"after a {way} at {home.host_header}, {server.host_header} {problem}")
            home = server
    return passed()


async def _not_readmitted(session: Session, server: Target, patience_s: float) -> str | None:
    started = time.monotonic()
    while True:
        async with _named(session, server):
            response, link = await session.connect(target=server)
        elapsed_s = time.monotonic() - started
        if link is not None:
            await session.close(link)
            if elapsed_s > session.limits.at_once_s + session.handshake_s:
                return f"let the device in only after {elapsed_s:.1f} s"
            return None
        if response.status != 409 or elapsed_s >= patience_s:
            return f"answered {described(response)}, expected 101"
        await asyncio.sleep(_RETRY_S)


@asynccontextmanager
async def _connected(session: Session, server: Target) -> AsyncIterator[Link]:
    """The device's connection to a server. The next check that needs one opens its own."""
    async with _named(session, server):
        link = await session.opened(session.upgrade(), target=server)
    try:
        yield link
    finally:
        await session.close(link)


@asynccontextmanager
async def _named(session: Session, server: Target) -> AsyncIterator[None]:
    """Name the server in every failure, and wait for it no longer than other checks wait for an answer."""
    limit_s = session.limits.timeout_s + session.limits.challenge_s
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError as error:
        raise UnexpectedError(f"{server.host_header}: no answer within {limit_s:g} s") from error
    except NotHttpError as error:
        raise UnexpectedError(f"{server.host_header}: {error}") from error
    except OSError as error:
        raise UnexpectedError(connect_problem(server, error)) from error
    except UnexpectedError as error:
        raise type(error)(f"{server.host_header}: {error}") from error
