"""A run: its checks, their order and their time limits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass, replace
from typing import Final

from . import checks_addressing, checks_audio, checks_connection, checks_delivery, checks_http, checks_servers
from .between import HEALTH_ROUTE, no_gateway, no_upgrade
from .credentials import Device
from .device import ConnectionLostError, Message, connect
from .judge import described, described_close
from .session import CLOSE_REPLACED, HELD, REPLACED, DeviceHeldError, Session, UnexpectedError, UpgradeLostError
from .target import connect_problem
from .verdicts import Outcome, ProbeError, Report, Status, Verdict, failed, skipped
from .wire import NotHttpError, Upgrade, exchange

_MARGIN_S: Final = 1.0  # so that a check's own timeout, with its better message, comes first


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    :ivar name: a stable id, for scripts
    :ivar title: the checked promise, as a sentence
    :ivar connects: it connects as the device, and is skipped if that is impossible
    :ivar upgrades: it sends handshakes, and is skipped if none reaches the gateway
    :ivar extra_s: the time that it may take in addition to the session's timeout, in seconds
    """

    name: str
    title: str
    run: Callable[[Session], Awaitable[Verdict]]
    connects: bool = False
    extra_s: Callable[[Session], float] = lambda session: 0.0
    upgrades: bool = False


def _challenge_s(session: Session) -> float:
    return session.limits.challenge_s + session.limits.timeout_s


def _publish_s(session: Session) -> float:
    # Publishing and delivery have the timeout each; a first connection to Kafka has three times the timeout.
    return 3 * session.limits.timeout_s + session.limits.quiet_s


def _speech_s(session: Session) -> float:
    duration_s = session.audio.duration_s if session.audio else 0.0
    return duration_s + session.limits.audio_s + session.limits.timeout_s + session.limits.quiet_s


# Plain HTTP comes first, then the handshake, which must work before refusals mean anything. After it, the checks share
# one connection until they close it. Checks that break connections come last.
CHECKS: Final = (
    Check("health", "GET /api/v1/health answers healthy", checks_http.health),
    Check("ready", "GET /api/v1/ready answers 200 with every part", checks_http.ready),
    Check("unknown-route", "an unknown route has a JSON error body", checks_http.unknown_route),
    Check("live-upload", "an upload reaches the gateway before it ends", checks_http.live_upload),
    Check("handshake", "a device can connect", checks_connection.handshake, True, _challenge_s),
    Check("no-token", "a missing token gets 401", checks_http.no_token, upgrades=True),
    Check("bad-token", "a malformed token gets 401", checks_http.bad_token, upgrades=True),
    Check("bad-signature", "a wrong signature gets 401", checks_http.tampered_signature, upgrades=True),
    Check("changed-claims", "claims with another token's signature get 401", checks_http.changed_claims, upgrades=True),
    Check("alg-none", "a token with alg none gets 401", checks_http.unsigned_token, upgrades=True),
    Check("ping", "a ping gets a pong with its payload", checks_connection.ping, True),
    Check("duplicate", "a second connection gets 409", checks_connection.duplicate, True, _challenge_s),
    Check("delivery", "a record arrives as compact JSON, type first", checks_delivery.delivery, True, _publish_s),
    Check("order", "each record arrives once, in order", checks_delivery.order, True, _publish_s),
    Check("isolation", "a message reaches its device only", checks_delivery.isolation, True, _publish_s),
    Check("priority", "high goes first, each priority in order", checks_addressing.priority, True, _publish_s),
    Check("addressing", "a device can't address others", checks_addressing.addressing, True),
    Check("group", "a group's message reaches its members only", checks_addressing.group, True, _publish_s),
    Check("audio", "speech returns as a transcript", checks_audio.audio, True, _speech_s),
    Check("close", "a close gets a close", checks_connection.close_handshake, True),
    Check(
        "clean-up-close",
        "the device can reconnect after a close",
        checks_connection.clean_up_after_close,
        True,
        _challenge_s,
    ),
    Check(
        "clean-up-reset",
        "the device can reconnect after a TCP reset",
        checks_connection.clean_up_after_reset,
        True,
        _challenge_s,
    ),
    Check("token-query", "the token can be in the query", checks_connection.token_in_query, True),
    Check("token-subprotocol", "the token can be a subprotocol", checks_connection.token_in_subprotocol, True),
    Check("subprotocols", "other subprotocols are ignored", checks_connection.other_subprotocols, True),
    Check("own-origin", "the server's own origin can connect", checks_connection.own_origin, True),
    Check("foreign-origin", "another web page's origin gets 403", checks_http.foreign_origin, True),
    Check("plain-get", "a GET without an upgrade gets 426", checks_http.plain_get, True),
    Check("oversize", "a message over 512 KiB is closed with 1009", checks_connection.oversize, True, _challenge_s),
    Check("invalid-frame", "an invalid frame ends the connection", checks_connection.invalid_frame, True, _challenge_s),
    Check("expired", "an expired token gets 401", checks_http.expired_token, upgrades=True),
    Check("no-device-id", "a token without device_id gets 401", checks_http.token_without_device, upgrades=True),
    Check("idle", "an idle connection stays open", checks_connection.idle, True, lambda s: s.idle_s + _challenge_s(s)),
    Check("server-ping", "the server pings an idle connection", checks_connection.server_ping, True),
)

# Further checks of speech, which follow "audio" if a recording is given.
AUDIO_CHECKS: Final = (
    Check("audio-interim", "partial results arrive during speech", checks_audio.interim),
    Check("audio-message", "the device gets the words as messages", checks_audio.message),
    Check("audio-words", "the message has the same words as the answer", checks_audio.words),
    Check("audio-final", "exactly one message is the final one", checks_audio.final),
    Check("audio-order", "the final message is the last, after the audio", checks_audio.order),
    Check("audio-published", "the words are published before the answer", checks_audio.published),
    Check("audio-isolation", "no other device gets the words", checks_audio.isolation),
    Check("audio-binary", "the same audio as binary messages", checks_audio.binary, True, _speech_s),
)


def _servers_s(session: Session) -> float:
    """Every pair of servers takes a few exchanges."""
    servers = len(session.also) + 1
    return servers * servers * (session.limits.timeout_s + session.limits.challenge_s)


def _servers_publish_s(session: Session) -> float:
    return (len(session.also) + 1) * (_publish_s(session) + session.limits.timeout_s)


# Further checks of several servers, which follow "audio" and its checks. The device moves from server to server in all
# of them, so its clean-up comes first.
SERVER_CHECKS: Final = (
    Check("servers-ready", "every server is ready", checks_servers.ready, extra_s=_servers_s),
    Check(
        "servers-clean-up",
        "the device can reconnect at another server",
        checks_servers.clean_up,
        True,
        _servers_s,
    ),
    Check("servers-duplicate", "every other server answers 409", checks_servers.duplicate, True, _servers_s),
    Check(
        "servers-delivery",
        "records arrive on whichever server the device is",
        checks_servers.delivery,
        True,
        _servers_publish_s,
    ),
    Check(
        "servers-isolation",
        "devices on two servers get their own messages",
        checks_servers.isolation,
        True,
        _servers_publish_s,
    ),
)


def checks_for(session: Session) -> tuple[Check, ...]:
    """The checks of a run, in order."""
    behind = next(index for index, check in enumerate(CHECKS) if check.name == "audio") + 1
    of_audio = () if session.audio is None else AUDIO_CHECKS
    of_servers = SERVER_CHECKS if session.also else ()
    return (*CHECKS[:behind], *of_audio, *of_servers, *CHECKS[behind:])


async def run(session: Session, on_outcome: Callable[[Outcome], None], required: Container[str] = ()) -> Report:
    """Run all checks in sequence, and call ``on_outcome`` after each.

    Closes everything that the session has opened, even on an error.

    :param required: the names of checks that fail if they would be skipped
    :raises ProbeError: no HTTP server answers at the URL
    """
    started_at, started = time.time(), time.monotonic()
    outcomes: list[Outcome] = []
    try:
        await _preflight(session)
        for check in checks_for(session):
            outcome = await _outcome(check, session)
            if outcome.status is Status.SKIPPED and check.name in required:
                outcome = replace(outcome, status=Status.FAILED, detail=f"required, but skipped: {outcome.detail}")
            outcomes.append(outcome)
            on_outcome(outcome)
    finally:
        await session.let_go()
        await session.publisher.close()
    also = tuple(server.ws_url for server in session.also)
    return Report(session.target.ws_url, started_at, time.monotonic() - started, tuple(outcomes), also)


async def _preflight(session: Session) -> None:
    """Send one request. Without a response, or with one that rules out the URL, the checks are pointless."""
    target = session.target
    try:
        async with asyncio.timeout(session.limits.timeout_s):
            response = await exchange(target, "GET", HEALTH_ROUTE)
    except (OSError, TimeoutError) as error:
        raise ProbeError(connect_problem(target, error)) from error
    except NotHttpError as error:
        hint = "" if target.secure else " (is it a TLS port? then wss://)"
        raise ProbeError(f"{target.host_header}: {error}{hint}") from error
    if problem := no_gateway(target, response):
        raise ProbeError(f"{target.host_header}: {problem}")


async def _outcome(check: Check, session: Session) -> Outcome:
    started = time.monotonic()
    verdict = await _verdict(check, session)
    if check.name == "handshake" and verdict.status is Status.FAILED and session.blocked is None:
        session.blocked = "the handshake failed"
    detail = session.redacted(verdict.detail)
    return Outcome(check.name, check.title, verdict.status, detail, time.monotonic() - started)


async def _verdict(check: Check, session: Session) -> Verdict:
    if check.upgrades and session.no_upgrade is not None:
        return skipped(session.no_upgrade)
    if check.connects and session.blocked is not None:
        return skipped(session.blocked)
    limit_s = session.limits.timeout_s + _MARGIN_S + check.extra_s(session)
    try:
        async with asyncio.timeout(limit_s):
            return await check.run(session)
    except DeviceHeldError as error:
        session.blocked = HELD
        await session.let_go()
        return failed(str(error))
    except UpgradeLostError as error:
        session.blocked = session.no_upgrade = "no handshake reaches the gateway"
        return failed(str(error))
    except UnexpectedError as error:
        return failed(str(error))
    except ConnectionLostError as lost:
        await session.let_go()
        if lost.code == CLOSE_REPLACED:
            session.blocked = HELD
            return failed(REPLACED)
        return failed(f"the gateway ended the connection {described_close(lost.code, lost.reason)}")
    except NotHttpError as error:
        return failed(str(error))
    except TimeoutError:
        await session.let_go()
        return failed(f"no answer within {limit_s:g} s")
    except OSError as error:
        return failed(connect_problem(session.target, error))


async def listen(session: Session, seconds: float, on_message: Callable[[Message], None]) -> None:
    """Connect as the device and call ``on_message`` for every message, for ``seconds``; 0: until cancelled.

    :raises ProbeError: the device is refused, or the connection ends early
    """
    link = None
    try:
        async with asyncio.timeout(session.limits.timeout_s + session.limits.challenge_s):
            response, link = await connect(session.target, Upgrade(session.device.token))
    except (OSError, TimeoutError) as error:
        raise ProbeError(connect_problem(session.target, error)) from error
    except NotHttpError as error:
        raise ProbeError(f"{session.target.host_header}: {error}") from error
    if link is None:
        reason = HELD if response.status == 409 else "not let in"
        raise ProbeError(session.redacted(f"{reason}: {no_upgrade(response) or described(response)}"))
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds or None):
                while True:
                    on_message(await link.receive())
    except ConnectionLostError as lost:
        raise ProbeError(f"the gateway ended the connection {described_close(lost.code, lost.reason)}") from lost
    finally:
        await session.close(link)


def needs_warning(devices: list[Device]) -> str | None:
    """A warning if the probe uses the identity of a real device; None otherwise."""
    names = ", ".join(repr(device.device_id) for device in devices if device.given)
    return f"note: while this runs, the probe gets the messages for {names}, not the device" if names else None
