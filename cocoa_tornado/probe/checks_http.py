"""Checks of plain HTTP, and of refusals before the upgrade. None of them needs the device's slot."""

from __future__ import annotations

import time

from . import credentials
from .between import is_blocked, note_on_426
from .judge import (
    described,
    judge_error_body,
    judge_health,
    judge_plain_get,
    judge_ready,
    judge_refusal,
)
from .session import HELD, DeviceHeldError, Session
from .speaking import AUDIO_ROUTE
from .verdicts import Verdict, failed, judged, skipped
from .wire import Upgrade, answer_before_the_end, exchange

MISSING = "Missing JWT token"
INVALID = "Invalid JWT token"
CLAIMS = "Invalid JWT claims"


async def health(session: Session) -> Verdict:
    return judged(judge_health(await exchange(session.target, "GET", "/api/v1/health")))


async def ready(session: Session) -> Verdict:
    response = await exchange(session.target, "GET", "/api/v1/ready")
    if is_blocked(response):
        return skipped(f"answered {described(response)}: it does not let it be seen from outside")
    return judged(judge_ready(response))


async def unknown_route(session: Session) -> Verdict:
    response = await exchange(session.target, "GET", "/api/v1/no-such-route")
    if response.status != 404:
        return failed(f"answered {described(response)}, expected 404")
    return judged(judge_error_body(response))


async def live_upload(session: Session) -> Verdict:
    """Uses an invalid token, so that it needs no slot and no speech engine."""
    headers = [("Authorization", "Bearer not-a-token"), ("Content-Type", "application/octet-stream")]
    patience_s = session.limits.timeout_s / 2
    response, is_early = await answer_before_the_end(session.target, AUDIO_ROUTE, headers, patience_s)
    if response.status == 411:
        return failed("answered 411: a proxy wants to know the length; live audio has none")
    if not is_early:
        return failed(
            f"an upload is answered ({response.status}) only once it has ended: a proxy holds it back, and live audio "
            "with it (nginx: proxy_request_buffering off)"
        )
    return judged(None if response.status == 501 else judge_refusal(response, 401, INVALID, bearer=True))


async def plain_get(session: Session) -> Verdict:
    """Closes the device's connection first, as the gateway judges token and slot before it answers 426."""
    await session.let_go()
    headers = [("Authorization", f"Bearer {session.device.token}")]
    response = await exchange(session.target, "GET", "/ws", headers)
    if response.status == 409:
        raise DeviceHeldError(HELD)
    return judged(judge_plain_get(response), note_on_426(response))


async def no_token(session: Session) -> Verdict:
    return await _refused(session, None, MISSING)


async def bad_token(session: Session) -> Verdict:
    return await _refused(session, "not-a-token", INVALID)


async def tampered_signature(session: Session) -> Verdict:
    return await _refused(session, credentials.tampered(session.device.token), INVALID)


async def changed_claims(session: Session) -> Verdict:
    forged = credentials.relabelled(session.device.token, credentials.random_device_id())
    return await _refused(session, forged, INVALID)


async def unsigned_token(session: Session) -> Verdict:
    return await _refused(session, credentials.unsigned(session.device.token), INVALID)


async def expired_token(session: Session) -> Verdict:
    if session.key is None or not session.key_proven:
        return _cannot_sign()
    return await _refused(session, credentials.expired(session.key, session.device, time.time()), INVALID)


async def token_without_device(session: Session) -> Verdict:
    if session.key is None or not session.key_proven:
        return _cannot_sign()
    return await _refused(session, credentials.without_device_id(session.key, time.time()), CLAIMS)


async def foreign_origin(session: Session) -> Verdict:
    await session.let_go()
    upgrade = Upgrade(session.device.token, origin="https://foreign.invalid")
    response, link = await session.connect(upgrade)
    if link is not None:
        await session.close(link)
    return judged(judge_refusal(response, 403))


def _cannot_sign() -> Verdict:
    return skipped("no key of the gateway's to sign such a token with (--secret)")


async def _refused(session: Session, token: str | None, message: str) -> Verdict:
    """A handshake with this token must be refused with 401."""
    response, link = await session.connect(Upgrade(token))
    if link is not None:
        await session.close(link)
    return judged(judge_refusal(response, 401, message, bearer=True))
