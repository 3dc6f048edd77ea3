"""Recognizes proxies between a device and its gateway by their responses. Pure.

A proxy may respond instead of the gateway, or change the gateway's response. Changes that RFC 9110 allows are not
failures. A problem that blocks every device gets one diagnosis, with advice, rather than one failure per check.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from .judge import described, judge_error_body, quoted
from .target import Target
from .wire import Response, json_value

HEALTH_ROUTE: Final = "/api/v1/health"
_UPGRADE_ADVICE: Final = (
    "a proxy must speak HTTP/1.1 to the gateway and pass the headers Upgrade and Connection on "
    "(nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade)"
)


def no_gateway(target: Target, response: Response) -> str | None:
    """The problem of the whole URL, by the response to ``GET /api/v1/health``; None if the checks can begin.

    A running gateway always answers 200.
    """
    if _is_redirect(response):
        return f"answered {described(response)}: a device follows no redirect{_suggested(response)}"
    # nginx and Go's HTTP server say so in the body; HAProxy closes the connection.
    if not target.secure and response.status == 400 and b"https" in response.body.lower():
        return f"answered {described(response)}: it is a TLS port (wss://)"
    if response.status == 421 and judge_error_body(response) is None:
        return f"does not answer by this host name: {_message(response)}"
    if response.status in (502, 503, 504):
        return f"answered {described(response)}: a proxy is there, but reaches no gateway"
    return None


def no_upgrade(response: Response) -> str | None:
    """Why a valid opening handshake with a valid token did not reach the gateway; None if it did.

    The gateway's own refusals (401, 403, 409, 503) have the contract's body.
    """
    answered = f"answered {described(response)}"
    if response.status == 101:
        return None
    if _is_redirect(response):
        return f"{answered}: a device follows no redirect{_suggested(response)}"
    if response.status in (400, 426):
        return f"{answered}: the upgrade does not reach the gateway; {_UPGRADE_ADVICE}"
    if response.status == 404 and judge_error_body(response) is None:
        where = "check the path of the URL, and what a proxy makes of it"
        return f"{answered}: the gateway answers here, but not at this path: {where}"
    if response.status < 300 or (judge_error_body(response) and response.status in (404, 405, 501)):
        return f"{answered}: something else than the gateway answers at this path; a proxy must route it there"
    if judge_error_body(response) and response.status in (502, 503, 504):
        return f"{answered}: a proxy is there, but reaches no gateway"
    return None


def is_blocked(response: Response) -> bool:
    """Whether a proxy blocks this route. The gateway's own refusals have the contract's body."""
    return response.status in (403, 404, 405) and judge_error_body(response) is not None


def note_on_426(response: Response) -> str:
    """A remark about a valid 426; '' if there is none.

    RFC 9110 requires ``Upgrade`` in a 426 (15.5.22), but the field is hop-by-hop, so a proxy must remove it (7.6.1).
    Go's reverse proxies, Caddy and Traefik do; nginx and HAProxy forward it.
    """
    if "websocket" in (response.header("Upgrade") or "").lower():
        return ""
    return "without the header Upgrade, which a proxy has to remove"


def _message(response: Response) -> str:
    """Of a refusal with the contract's body."""
    value = json_value(response.body)
    return quoted(str(value.get("message", ""))) if isinstance(value, dict) else ""


def _is_redirect(response: Response) -> bool:
    return response.status in (301, 302, 303, 307, 308) and response.header("Location") is not None


def _suggested(response: Response) -> str:
    """A suggestion of the redirect's URL; '' if it has none, or does not look like a gateway's."""
    try:
        parts = urlsplit(response.header("Location") or "")
    except ValueError:
        return ""
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme)
    path = parts.path.removesuffix(HEALTH_ROUTE).removesuffix("/ws").rstrip("/")
    return f"; try {scheme}://{quoted(parts.netloc)}{quoted(path)}/ws" if scheme and "@" not in parts.netloc else ""
