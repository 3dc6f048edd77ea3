"""Access tokens for SASL/OAUTHBEARER, by the client credentials grant (RFC 6749, section 4.4)."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPSConnection, InvalidURL
from typing import Any

from ..errors import BrokerError
from ..plain_text import one_line
from ..rules.addresses import without_user_info

FETCH_TIMEOUT_S = 5.0
DEFAULT_LIFE_S = 300.0  # if the answer has no expires_in
MAX_LIFE_S = 86_400.0  # a token is renewed daily, even if it lives longer
MARGIN = 0.2  # of its life: how long before its expiry a token is renewed
RETRY_S = 10.0  # after a failure, before the next early renewal
MAX_ANSWER_BYTES = 256 * 1024
MAX_PROBLEM = 200  # characters of an error text


class ClientCredentials:
    """Exchanges a client's id and secret for access tokens, and caches each until shortly before it expires.

    Thread-safe. :meth:`token` may block for a few seconds and is called only on the client library's own threads. If a
    thread that may wait calls :meth:`refresh_if_due` periodically, :meth:`token` seldom has to.
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: str,
        scope: str | None,
        clock: Callable[[], float] = time.monotonic,
        timeout_s: float = FETCH_TIMEOUT_S,
    ) -> None:
        self._url, self._client_id, self._secret, self._scope = token_url, client_id, client_secret, scope
        self._shown = without_user_info(token_url)
        self._clock, self._timeout_s = clock, timeout_s
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = self._expires_at = float("-inf")

    def __repr__(self) -> str:
        return f"<ClientCredentials of {self._client_id} at {self._shown}>"

    def token(self) -> str:
        """A token that has not expired. Raises BrokerError if none is available."""
        with self._lock:
            now = self._clock()
            if now >= min(self._renew_at, self._expires_at):
                try:
                    self._renew()
                except BrokerError:
                    self._renew_at = now + RETRY_S
                    if now >= self._expires_at:
                        raise
            return self._token

    def token_and_life_s(self) -> tuple[str, float]:
        """The same, with its remaining life."""
        token = self.token()
        return token, max(0.0, self._expires_at - self._clock())

    def refresh_if_due(self) -> None:
        """Renew the token if it is time to. Failures are left to :meth:`token`, which reports them."""
        if self._clock() < self._renew_at:
            return
        try:
            self.token()
        except BrokerError:
            return

    def _renew(self) -> None:
        token, life_s = parse_grant(self._fetch(), self._shown)
        now = self._clock()
        self._token, self._expires_at = token, now + life_s
        self._renew_at = now + life_s * (1 - MARGIN)

    def _fetch(self) -> bytes:
        form = {"grant_type": "client_credentials"}
        if self._scope:
            form["scope"] = self._scope
        # RFC 6749, 2.3.1: both parts are form-encoded before they are joined.
        pair = f"{urllib.parse.quote_plus(self._client_id)}:{urllib.parse.quote_plus(self._secret)}"
        request = urllib.request.Request(
            self._url,
            data=urllib.parse.urlencode(form).encode(),
            headers={
                "Authorization": "Basic " + base64.b64encode(pair.encode()).decode(),
                "Accept": "application/json",
            },
        )
        try:
            return post(request, self._timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                moved = "; redirects are not followed, for the secret would go along" if 300 <= error.code < 400 else ""
                raise BrokerError(f"the token endpoint {self._shown} answered {error.code}{moved}") from error
        except InvalidURL:
            # The exception quotes the invalid port, which may be part of a password.
            raise BrokerError(f"the token endpoint {self._shown} has a host or port that cannot be used") from None
        # Exception: http.client passes on any error of its parsers.
        except Exception as error:
            # The text may come from the server.
            problem = one_line(str(error) or type(error).__name__, MAX_PROBLEM)
            raise BrokerError(f"the token endpoint {self._shown} cannot be used: {problem}") from error


def parse_grant(answer: bytes, origin: str) -> tuple[str, float]:
    """Parse a token endpoint's answer: the access token, and its life in seconds. Pure.

    :param origin: the endpoint's name in an error
    :raises BrokerError: there is no usable token
    """
    if len(answer) > MAX_ANSWER_BYTES:
        raise BrokerError(f"the token endpoint {origin} answered more than {MAX_ANSWER_BYTES >> 10} KiB")
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise BrokerError(f"the token endpoint {origin} answered something that is not JSON") from error
    if not isinstance(document, dict):
        raise BrokerError(f"the token endpoint {origin} answered something that is not a JSON object")
    token = document.get("access_token")
    # RFC 6750, 2.1. A control character would end the token's field in the SASL message (RFC 7628, 3.1).
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
        raise BrokerError(f"the token endpoint {origin} answered without an access_token that can be used")
    return token, _life_s(document.get("expires_in"))


def _life_s(expires_in: object) -> float:
    """Some servers send the number as a string. If it is missing or invalid, assume a short life."""
    try:
        life_s = float(expires_in) if isinstance(expires_in, int | float | str) else DEFAULT_LIFE_S
    except (ValueError, OverflowError):
        return DEFAULT_LIFE_S
    return min(life_s, MAX_LIFE_S) if life_s > 0 else DEFAULT_LIFE_S  # NaN is not above 0 either


# --- The request ---------------------------------------------------------------------------------------------------


class _Deadline:
    """Ends a connection that takes too long in all: a socket's own timeout restarts with each byte."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.is_over = False

    def watch(self, sock: socket.socket) -> None:
        with self._lock:
            # A duplicate, because TLS takes over the descriptor that it is given.
            self._socket = sock.dup()
        if self.is_over:
            self.end()

    def end(self) -> None:
        self.is_over = True
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as an error: urllib would send the client's secret along, to any host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def post(request: urllib.request.Request, timeout_s: float) -> bytes:
    """Send a request; return the body of a successful response, or its first ``MAX_ANSWER_BYTES + 1`` bytes.

    Takes at most ``timeout_s``, however slowly the server answers, plus the name resolution.

    :raises OSError: no answer, or ``urllib.error.HTTPError``: an unsuccessful one, including redirects
    :raises ValueError: the URL is invalid
    :raises HTTPException: the answer is not HTTP
    """
    deadline = _Deadline()

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            deadline.watch(self.sock)

    class Secure(HTTPSConnection, Plain):
        """Its ``connect`` calls that of ``Plain`` before the TLS handshake."""

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(Plain, req)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(Secure, req, context=ssl.create_default_context())

    timer = threading.Timer(timeout_s, deadline.end)
    timer.daemon = True
    timer.start()
    try:
        opener = urllib.request.build_opener(_NoRedirects, PlainHandler, SecureHandler)
        with opener.open(request, timeout=timeout_s) as answer:
            body = bytes(answer.read(MAX_ANSWER_BYTES + 1))
    except (OSError, HTTPException, ValueError) as error:
        if deadline.is_over and not isinstance(error, urllib.error.HTTPError):
            raise TimeoutError(f"no whole answer within {timeout_s:g} s") from error
        raise
    finally:
        timer.cancel()
        deadline.close()
    if deadline.is_over:
        raise TimeoutError(f"no whole answer within {timeout_s:g} s")
    return body
