"""Where the deployment is: from the URL that a person types to host, port and paths."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from ..plain_text import quoted, strip_blanks
from ..rules.addresses import masked
from .verdicts import ProbeError

_ERRNO = re.compile(r"\[Errno (\d+)\]")
_HOST = re.compile(r"[A-Za-z0-9._:%~-]+")  # after IDNA, which can make a blank of a letter
_MAX_HOST = 253
_SECURE = {"ws": False, "http": False, "wss": True, "https": True}


@dataclass(frozen=True, slots=True)
class Target:
    """A deployment of the contract.

    :ivar host: name or address, without brackets
    :ivar prefix: path in front of ``/ws`` and ``/api``, without a slash at its end; often empty
    :ivar tls: how to speak TLS, or None for plain TCP
    """

    host: str
    port: int
    secure: bool
    prefix: str = ""
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)

    @property
    def host_header(self) -> str:
        """The ``Host`` header: the port stands in it where it isn't the scheme's own."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.secure else 80) else f"{name}:{self.port}"

    @property
    def ws_path(self) -> str:
        return f"{self.prefix}/ws"

    @property
    def ws_url(self) -> str:
        return f"{'wss' if self.secure else 'ws'}://{self.host_header}{self.ws_path}"

    def path(self, route: str) -> str:
        """The path of a route of the contract: ``/api/v1/health``."""
        return self.prefix + route


def parse_target(url: str) -> tuple[Target, str | None]:
    """Read a URL; also return the token in its query argument ``token``, if there is one.

    ``ws``, ``wss``, ``http`` and ``https`` are equally right; without a scheme it is ``ws``. The path is the base of
    the deployment, with or without ``/ws`` at its end.

    >>> parse_target("https://gateway.example/cocoa/")[0].ws_url
    'wss://gateway.example/cocoa/ws'

    :raises ProbeError: it is not such a URL
    """
    text = strip_blanks(url)
    # Masked as a whole before it is cut, for a password may hold a question mark. What is cut off has the token.
    shown = quoted(re.split(r"[?#]", masked(text), maxsplit=1)[0])
    try:
        parts = urlsplit(text if "://" in text else f"ws://{text}")
        port = parts.port
        host = _ascii(parts.hostname or "")
    except ValueError:  # UnicodeError is one too: a name that IDNA can't spell
        # Neither its text nor the error itself: they quote what was taken for the port, which may be a password.
        raise ProbeError(f"not a URL: {shown}: its host or port cannot be read") from None
    if parts.scheme not in _SECURE:
        raise ProbeError(f"{shown}: a URL begins with ws://, wss://, http:// or https://")
    if not _HOST.fullmatch(host) or not text.isprintable() or " " in text:
        raise ProbeError(f"not a URL: {shown}: it names no host, or holds a character that no URL has")
    if parts.username is not None or parts.fragment:
        raise ProbeError("a URL with a user name or a fragment is of no use here; give the token with --token")
    query = parse_qs(parts.query, keep_blank_values=True)
    if set(query) - {"token"} or len(query.get("token", [])) > 1:
        raise ProbeError("the URL may have no query but one token")
    secure = _SECURE[parts.scheme]
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._").rstrip("/")
    prefix = path.removesuffix("/ws")
    token = query["token"][0] if query.get("token", [""])[0] else None
    return Target(host, port if port is not None else (443 if secure else 80), secure, prefix), token


def _ascii(host: str) -> str:
    """Encode a host as the resolver does. Raises UnicodeError (a ValueError) if it cannot be encoded."""
    if len(host) > _MAX_HOST:
        raise ValueError("its host is too long")
    # The resolver's own encoding refuses empty and long labels, where nothing would catch it; an address has neither.
    return host if ":" in host else host.encode("idna").decode("ascii")


def tls_context(ca: Path | None, insecure: bool) -> ssl.SSLContext:
    """How to speak TLS: the system's authorities, or those in ``ca``; ``insecure`` believes anybody.

    :raises ProbeError: ``ca`` cannot be used
    """
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise ProbeError(f"{ca}: no certificates can be read from it: {_reason(error)}") from error
    # As RFC 6455 clients do, so that a server that has both does not go by HTTP/2.
    context.set_alpn_protocols(["http/1.1"])
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def connect_problem(target: Target, error: BaseException) -> str:
    """One line that says why a connection failed, and what may help."""
    where = target.host_header
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = getattr(error, "verify_message", "") or _reason(error)
        ways_out = "--ca FILE names its authority, --insecure believes anybody"
        return f"the certificate of {where} is not trusted: {reason} ({ways_out})"
    if isinstance(error, ssl.SSLError):
        return f"TLS with {where} fails: {_reason(error)} (is it a plain ws:// port?)"
    if isinstance(error, TimeoutError):
        return f"cannot connect to {where}: no answer in time"
    return f"cannot connect to {where}: {_reason(error)}"


def _reason(error: BaseException) -> str:
    """Cases: TLS; addresses that all failed alike (asyncio puts them in one text); a system error; anything else."""
    text = str(error) or type(error).__name__
    if isinstance(error, ssl.SSLError):
        return (getattr(error, "reason", None) or text).replace("_", " ").lower()
    numbers = set(_ERRNO.findall(text)) if isinstance(error, OSError) else set()
    if len(numbers) == 1:
        return os.strerror(int(numbers.pop()))
    return error.strerror if isinstance(error, OSError) and error.strerror else text
