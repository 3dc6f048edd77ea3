"""What browsers may do with the console. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\]")

# No inline code and no inline style; nothing from another host; no string becomes code or markup.
_DIRECTIVES: Final = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "worker-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
)

SAFETY: Final[Mapping[str, str]] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=(), display-capture=(), usb=(), payment=()",
}
"""Headers of every file."""


def content_security_policy(host: str, *, tls: bool, device_port: int | None = None) -> str:
    """Return the value of ``Content-Security-Policy``.

    :param host: the header ``Host`` of the request
    :param tls: whether the page comes over https
    :param device_port: where devices connect, if that is not the console's own origin: the page may, too
    """
    sources = ["'self'"]
    name = _host_of(host)
    if device_port is not None and name is not None:
        sources.append(f"{'wss' if tls else 'ws'}://{name}:{device_port}")
    return "; ".join((*_DIRECTIVES, f"connect-src {' '.join(sources)}"))


def _host_of(authority: str) -> str | None:
    """The host without its port; None if it is not one that can stand in a policy."""
    found = _HOST.match(authority)
    if found is None or not re.fullmatch(r"(:[0-9]{0,5})?", authority[found.end() :]):
        return None
    return found[0]
