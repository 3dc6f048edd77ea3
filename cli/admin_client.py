"""The HTTP client of ``cocoa admin``: one request, one answer, and one line for each problem."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, ClassVar, Final
from urllib.parse import quote, urlencode

import click

from cocoa_tornado.plain_text import one_line
from cocoa_tornado.probe.target import Target, connect_problem
from cocoa_tornado.probe.wire import NotHttpError, Response, exchange

from .options import WrongUsage

BASE: Final = "/api/v1/admin"
AGENT: Final = "cocoa-admin"
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
MAX_WAIT_S: Final = 5.0
MAX_WAITS: Final = 3


class AdminError(click.ClickException):
    """The operation failed: one plain line on standard error, exit status 1.

    :ivar refusal: the API's error body as JSON, with the HTTP status as its member ``status``; None if no answer of the
        API is the reason
    """

    exit_code: ClassVar[int] = 1
    refusal: str | None = None


class NotFound(AdminError):
    """The named device, message or record does not exist."""


class Unavailable(AdminError):
    """The server cannot do it now: 429 or 503."""


REWRITTEN: Final = re.compile(r"\.\.?|.*[/\\\\].*", re.DOTALL)
"""Ids that proxies rewrite in a path, encoded or not: they remove dots, and decode and merge slashes."""


def place(kind: str, name: str, *rest: str) -> tuple[str, dict[str, object]]:
    """The path and the query that name a device, user, group or message. The bytes of a name that is not UTF-8 (from
    the command line) are kept.

    :param rest: what follows the name in the path
    :raises WrongUsage: the name is empty; the path would be another one
    """
    if not name:
        raise WrongUsage("An id must not be empty.")
    is_rewritten = REWRITTEN.fullmatch(name) is not None
    segment = "-" if is_rewritten else quote(name, safe="", errors="surrogateescape")
    return "/".join(("", kind, segment, *rest)), {"id": name} if is_rewritten else {}


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer.

    :ivar text: the JSON as received
    :ivar value: the same, parsed: always an object
    """

    text: str
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AdminClient:
    """Asks one server's admin API. Each request has a connection of its own.

    :ivar timeout_s: of each request
    :ivar has_own_token: whether the user gave the token; else the development key has signed it
    """

    target: Target
    token: str = field(repr=False)
    timeout_s: float
    has_own_token: bool

    @property
    def where(self) -> str:
        return f"{self.target.host_header}{self.target.prefix}"

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [("Authorization", f"Bearer {self.token}")]

    def ask(
        self, method: str, path: str, query: Mapping[str, object] | None = None, body: bytes | None = None
    ) -> Answer:
        """Send one request, and return its answer. If the server asks for patience (429), wait for a while.

        :param path: below the path of the admin API, percent-encoded
        :param query: fields; those that are None are skipped
        :raises NotFound: 404
        :raises Unavailable: 429 or 503
        :raises AdminError: any other problem
        """
        response = self._send(method, path, query, body)
        for _ in range(MAX_WAITS):
            wait_s = retry_after_s(response)
            if response.status != 429 or wait_s is None or wait_s > MAX_WAIT_S:
                break
            self.wait(wait_s)
            response = self._send(method, path, query, body)
        return self.judge(response)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def judge(self, response: Response) -> Answer:
        """Return the answer in a response. Raises like :meth:`ask`."""
        value = _object_of(response.body)
        if value is None or not (200 <= response.status < 300 or 400 <= response.status < 600):
            raise AdminError(f"{self.where}: {_described(response.status)}, which is not an answer of the admin API")
        if response.status >= 300:
            error = self._error(response, one_line(str(value.get("message", ""))))
            error.refusal = json.dumps(value | {"status": response.status}, separators=(",", ":"))
            raise error
        return Answer(response.body.decode("utf-8"), value)

    def _send(self, method: str, path: str, query: Mapping[str, object] | None, body: bytes | None) -> Response:
        route = route_of(path, query)
        try:
            return asyncio.run(self._exchange(method, route, body))
        except TimeoutError as error:
            raise AdminError(f"{self.where}: no answer within {self.timeout_s:g} s") from error
        except OSError as error:
            raise AdminError(connect_problem(self.target, error)) from error
        except NotHttpError as error:
            raise AdminError(f"{self.where}: {error}") from error

    async def _exchange(self, method: str, route: str, body: bytes | None) -> Response:
        async with asyncio.timeout(self.timeout_s):
            return await exchange(
                self.target, method, route, self.headers, body, agent=AGENT, max_body_bytes=MAX_BODY_BYTES
            )

    def _error(self, response: Response, message: str) -> AdminError:
        status = response.status
        if status == 401:
            return AdminError(f"{self.where} does not accept the token: {self._why_not(message)}")
        if status == 403:
            return AdminError(f"the token does not permit this: {message}")
        if status == 404 and message == "Not Found":
            return AdminError(
                f"{self.where} has no admin API: it is disabled (set admin_jwt_secret or admin_jwt_key), or has a port "
                "of its own (admin_port)"
            )
        if status == 404:
            return NotFound(message)
        if status == 421:
            return AdminError(f"{self.where} does not answer by this host name: {message}")
        if status == 413:
            return AdminError(f"the request is too large: {message}")
        wait_s = retry_after_s(response)
        kind = Unavailable if status in (429, 503) else AdminError
        return kind(f"{message or _described(status)}{'' if wait_s is None else f'; try again in {wait_s:g} s'}")

    def _why_not(self, message: str) -> str:
        expired_at = expiry_of(self.token)
        if expired_at is not None and expired_at < time.time():
            return f"it expired at {datetime.fromtimestamp(expired_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
        if not self.has_own_token:
            return (
                f"{message}. This machine's development key has signed it, but the gateway has other keys: give one of "
                "its tokens with --token @FILE or COCOA_ADMIN_TOKEN"
            )
        return message


def route_of(path: str, query: Mapping[str, object] | None = None) -> str:
    """The path of a request, with its query."""
    given = {name: value for name, value in (query or {}).items() if value is not None}
    fields = urlencode(given, quote_via=quote, safe="", errors="surrogateescape")
    return f"{BASE}{path}{'?' if fields else ''}{fields}"


def retry_after_s(response: Response) -> float | None:
    """What ``Retry-After`` says, if it says seconds."""
    text = response.header("Retry-After") or ""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def expiry_of(token: str) -> float | None:
    """When a token says that it expires, Unix seconds. Its signature is not verified. None: it does not say."""
    import jwt

    try:
        expires_at = float(jwt.decode(token, options={"verify_signature": False})["exp"])
        datetime.fromtimestamp(expires_at, UTC)
    except (jwt.PyJWTError, LookupError, TypeError, ValueError, OverflowError, OSError):
        return None
    return expires_at


def _object_of(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _described(status: int) -> str:
    try:
        return f"it answered {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"it answered {status}"
