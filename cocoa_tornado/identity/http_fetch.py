"""Fetches one document over HTTP from an untrusted server."""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from tornado.httpclient import HTTPError
from tornado.iostream import UnsatisfiableReadError
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from ..errors import KeyMaterialError
from ..plain_text import one_line

MAX_HEADER_BYTES: Final = 16 * 1024
MAX_PROBLEM: Final = 200


class HttpFetch:
    """Fetches over HTTP on the IOLoop, within ``timeout_s`` and at most ``max_bytes``.

    It verifies certificates, and follows no redirects, because the operator trusts the URL only. Any response yields a
    body or a KeyMaterialError of one short line.
    """

    __slots__ = ("_max_bytes", "_timeout_s")

    def __init__(self, timeout_s: float = 5.0, max_bytes: int = 1 << 20) -> None:
        self._timeout_s, self._max_bytes = timeout_s, max_bytes

    async def __call__(self, url: str) -> bytes:
        client = SimpleAsyncHTTPClient(
            force_instance=True, max_body_size=self._max_bytes, max_header_size=MAX_HEADER_BYTES
        )
        try:
            answer = client.fetch(
                url,
                connect_timeout=self._timeout_s,
                request_timeout=self._timeout_s,
                follow_redirects=False,
                decompress_response=False,  # so that max_bytes bounds the memory
                headers={"Accept": "application/jwk-set+json, application/json"},
            )
            # If this task is cancelled, Tornado's future runs until its timeout: Tornado logs an error for a cancelled
            # one, and asyncio logs an exception that is never retrieved.
            answer.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            response = await asyncio.shield(answer)
        # Any exception: Tornado's client does not wrap the errors of its parsers.
        except Exception as error:
            raise KeyMaterialError(f"{shown_url(url)}: {_problem(error)}") from error
        finally:
            client.close()
        return response.body


def shown_url(url: str) -> str:
    """Return the URL without its possibly secret parts: user, password, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a URL that cannot be parsed"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _problem(error: Exception) -> str:
    if isinstance(error, UnsatisfiableReadError):
        return f"its headers are larger than {MAX_HEADER_BYTES >> 10} KiB"
    if isinstance(error, HTTPError):
        # Tornado itself raises 599, with a message of its own; other messages come from the server.
        problem = f"HTTP {error.code}" if error.code != 599 else error.message or "no answer"
    else:
        problem = getattr(error, "strerror", None) or type(error).__name__
    return one_line(problem, MAX_PROBLEM)
