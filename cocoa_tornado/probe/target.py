"""The address of a deployment: parses the given URL into host, port and paths."""

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
_HOST = re.compile(r"[A-Za-z0-9._:%~-]+")  # after IDNA, which can turn a letter into a space
_MAX_HOST = 253
_SECURE = {"ws": False, "http": False, "wss": True, "https": True}


@dataclass(frozen=True, slots=True)
class Target:
    """A deployment of the contract.

    :ivar host: name or address, without brackets
    :ivar prefix: the path before ``/ws`` and ``/api``, without a trailing slash; often empty
    :ivar tls: the TLS context, or None for plain TCP
    """

    host: str
    port: int
    secure: bool
    prefix: str = ""
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)

    @property
    def host_header(self) -> str:
        """The ``Host`` header, with the port unless it is the scheme's default."""
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
    """Parse a URL. Also return the token in its query argument ``token``, if there is one.

    The scheme may be ``ws``, ``wss``, ``http`` or ``https``, and defaults to ``ws``. The path is the base of the
    deployment, with or without ``/ws`` at its end.

    >>> parse_target("https://gateway.example/cocoa/")[0].ws_url
    'wss://gateway.example/cocoa/ws'

    :raises ProbeError: the URL is invalid
    """
    text = strip_blanks(url)
    # Masked before it is cut, as a password may contain a question mark. The cut part has the token.
    shown = quoted(re.split(r"[?#]", masked(text), maxsplit=1)[0])
    try:
        parts = urlsplit(text if "://" in text else f"ws://{text}")
        port = parts.port
        host = _ascii(parts.hostname or "")
    except ValueError:  # includes UnicodeError, for a name that IDNA can't encode
        # Without the cause: it quotes what was parsed as the port, which may be a password.
        raise ProbeError(f"not a URL: {shown}: its host or port is invalid") from None
    if parts.scheme not in _SECURE:
        raise ProbeError(f"{shown}: a URL begins with ws://, wss://, http:// or https://")
    if not _HOST.fullmatch(host) or not text.isprintable() or " " in text:
        raise ProbeError(f"not a URL: {shown}: it has no host, or an invalid character")
    if parts.username is not None or parts.fragment:
        raise ProbeError("the URL must have no user name and no fragment; give the token with --token")
    query = parse_qs(parts.query, keep_blank_values=True)
    if set(query) - {"token"} or len(query.get("token", [])) > 1:
        raise ProbeError("the URL may have no query except one token")
    secure = _SECURE[parts.scheme]
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._").rstrip("/")
    prefix = path.removesuffix("/ws")
    token = query["token"][0] if query.get("token", [""])[0] else None
    return Target(host, port if port is not None else (443 if secure else 80), secure, prefix), token


def _ascii(host: str) -> str:
    """Encode a host as the resolver does. Raises UnicodeError (a ValueError) if it cannot be encoded."""
    if len(host) > _MAX_HOST:
        raise ValueError("its host is too long")
    # The resolver's own encoding raises for empty and long labels where nothing catches it; addresses have none.
    return host if ":" in host else host.encode("idna").decode("ascii")


def tls_context(ca: Path | None, insecure: bool) -> ssl.SSLContext:
    """The TLS context: with the system's CAs, or those in ``ca``; ``insecure`` disables verification.

    :raises ProbeError: ``ca`` is unusable
    """
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise ProbeError(f"{ca}: cannot read certificates: {_reason(error)}") from error
    # Like WebSocket clients, so that a server that supports both does not choose HTTP/2.
    context.set_alpn_protocols(["http/1.1"])
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def connect_problem(target: Target, error: BaseException) -> str:
    """One line with the reason why a connection failed, and a hint."""
    where = target.host_header
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = getattr(error, "verify_message", "") or _reason(error)
        ways_out = "give its CA with --ca FILE, or use --insecure"
        return f"the certificate of {where} is not trusted: {reason} ({ways_out})"
    if isinstance(error, ssl.SSLError):
        return f"TLS with {where} fails: {_reason(error)} (is it a plain ws:// port?)"
    hint = " (does this port speak TLS?)" if target.secure else ""
    if isinstance(error, TimeoutError):
        return f"cannot connect to {where}: no answer in time{hint}"
    if isinstance(error, ConnectionResetError):
        return f"cannot connect to {where}: Connection reset by peer{hint}"
    return f"cannot connect to {where}: {_reason(error)}"


def _reason(error: BaseException) -> str:
    """Cases: TLS; several addresses with the same error, which asyncio joins; a system error; anything else."""
    text = str(error) or type(error).__name__
    if isinstance(error, ssl.SSLError):
        return (getattr(error, "reason", None) or text).replace("_", " ").lower()
    numbers = set(_ERRNO.findall(text)) if isinstance(error, OSError) else set()
    if len(numbers) == 1:
        return os.strerror(int(numbers.pop()))
    return error.strerror if isinstance(error, OSError) and error.strerror else text
