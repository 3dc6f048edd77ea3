"""What stands between a device and its gateway, by what it answers. Pure.

A proxy answers in the gateway's place, or changes what the gateway answers. What RFC 9110 allows it is no fault. What
keeps every device out gets one diagnosis, with what to configure, and not one failure for each check behind it.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from .judge import described, judge_error_body, quoted
from .target import Target
from .wire import Response

HEALTH_ROUTE: Final = "/api/v1/health"
_UPGRADE_ADVICE: Final = (
    "a proxy must speak HTTP/1.1 to the gateway and pass the headers Upgrade and Connection on "
    "(nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade)"
)


def no_gateway(target: Target, response: Response) -> str | None:
    """What the answer to ``GET /api/v1/health`` says of the URL as a whole; None where the checks may begin.

    The gateway itself answers 200 for as long as it lives.
    """
    if _is_redirect(response):
        return f"answered {described(response)}: a device follows no redirect{_suggested(response)}"
    # nginx and Go's HTTP server say so in words; HAProxy hangs up.
    if not target.secure and response.status == 400 and b"https" in response.body.lower():
        return f"answered {described(response)}: it is a TLS port (wss://)"
    if response.status in (502, 503, 504):
        return f"answered {described(response)}: a proxy is there, but reaches no gateway"
    return None


def no_upgrade(response: Response) -> str | None:
    """Why a good opening handshake with a good token did not reach the gateway as one; None where it did.

    The gateway's own refusals (401, 403, 409, 503) have the contract's body.
    """
    answered = f"answered {described(response)}"
    if response.status == 101:
        return None
    if _is_redirect(response):
        return f"{answered}: a device follows no redirect{_suggested(response)}"
    if response.status in (400, 426):
        return f"{answered}: the upgrade does not reach the gateway; {_UPGRADE_ADVICE}"
    if response.status < 300 or (judge_error_body(response) and response.status in (404, 405, 501)):
        return f"{answered}: something else than the gateway answers at this path; a proxy must route it there"
    if judge_error_body(response) and response.status in (502, 503, 504):
        return f"{answered}: a proxy is there, but reaches no gateway"
    return None


def is_blocked(response: Response) -> bool:
    """A proxy refuses this route to everybody; what the gateway itself refuses has the contract's body."""
    return response.status in (403, 404, 405) and judge_error_body(response) is not None


def note_on_426(response: Response) -> str:
    """What is to be said of a 426, though nothing is wrong with it.

    RFC 9110 has ``Upgrade`` in a 426 (15.5.22), but the field is for one hop, and a proxy must remove it (7.6.1).
    Go's reverse proxies do, and so do Caddy and Traefik; nginx and HAProxy pass it on.
    """
    if "websocket" in (response.header("Upgrade") or "").lower():
        return ""
    return "without the header Upgrade, which a proxy has to remove"


def _is_redirect(response: Response) -> bool:
    return response.status in (301, 302, 303, 307, 308) and response.header("Location") is not None


def _suggested(response: Response) -> str:
    """Where to go instead; '' where the redirect doesn't say, or leads somewhere else than to a gateway."""
    try:
        parts = urlsplit(response.header("Location") or "")
    except ValueError:
        return ""
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme)
    path = parts.path.removesuffix(HEALTH_ROUTE).removesuffix("/ws").rstrip("/")
    return f"; try {scheme}://{quoted(parts.netloc)}{quoted(path)}/ws" if scheme and "@" not in parts.netloc else ""
