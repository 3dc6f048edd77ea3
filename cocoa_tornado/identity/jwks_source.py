"""The keys of one URL, kept fresh while the gateway runs. IOLoop thread only."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeAlias

from ..errors import KeyMaterialError
from .http_fetch import shown_url
from .jwks import parse_jwks
from .keys import VerificationKey

Fetch: TypeAlias = Callable[[str], Awaitable[bytes]]
"""Returns the document at a URL, within a bounded time and size, or raises KeyMaterialError."""

_log = logging.getLogger("cocoa.identity")


class JwksSource:
    """The keys of one URL, refreshed in the background. While the URL fails, the last valid keys stay in use.

    Changes of state (available, changed, unavailable) are logged once; attempts are not logged.

    A key that disappears from the URL verifies no more tokens. The connections that it authenticated stay open until
    another read, at least ``min_interval_s`` later, lacks it too: during a rotation, replicas of a CDN may serve the
    old set again.

    :param clock: monotonic seconds
    :ivar on_change: called on the IOLoop after ``keys`` or ``missing`` has changed
    :ivar keys: the last valid set; empty before the first
    :ivar loaded: whether any read has succeeded
    :ivar problem: why the last attempt failed; ``""`` if it succeeded
    """

    def __init__(
        self,
        url: str,
        fetch: Fetch,
        on_change: Callable[[], None],
        *,
        refresh_s: float = 300.0,
        min_interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self.keys: tuple[VerificationKey, ...] = ()
        self.loaded = False
        self.problem = "not read yet"
        self.on_change = on_change
        self._fetch, self._clock = fetch, clock
        self._refresh_s, self._min_interval_s = refresh_s, min_interval_s
        self._document: bytes | None = None  # None, as b"" is a possible response
        self._missing: dict[Hashable, tuple[VerificationKey, float]] = {}  # with the time since when
        self._pause_changed = asyncio.Event()
        self._failures = 0
        self._closed = False
        self._begun_at: float | None = None
        self._reading: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<JwksSource {shown_url(self.url)} {len(self.keys)} keys>"

    @property
    def missing(self) -> tuple[VerificationKey, ...]:
        """The keys that the latest read lacks, not yet confirmed by a second read."""
        return tuple(key for key, _ in self._missing.values())

    def confirm_missing(self) -> None:
        """Take the missing keys as removed. Does not call ``on_change``."""
        self._missing.clear()

    def keep_fresh(self) -> None:
        """Refresh in the background until :meth:`close`; the first read comes after one pause."""
        if self._keeper is None and not self._closed:
            self._keeper = asyncio.create_task(self._keep_fresh(), name=f"jwks {shown_url(self.url)}")

    def may_refresh(self) -> bool:
        """Whether an unknown key justifies a :meth:`refresh` now: a read is in progress, or the last one was at least
        ``min_interval_s`` ago."""
        if self._closed:
            return False
        if self._reading is not None or self._begun_at is None:
            return True
        return self._clock() - self._begun_at >= self._min_interval_s

    async def refresh(self) -> None:
        """Read the URL, or wait for the read in progress. Never fails. Cancelling a caller does not cancel the read."""
        if self._closed:
            return
        if self._reading is None:
            self._begun_at = self._clock()
            self._reading = asyncio.create_task(self._read(), name=f"jwks read {shown_url(self.url)}")
            self._reading.add_done_callback(self._read_over)
        await asyncio.wait({self._reading})

    async def close(self) -> None:
        """Stop refreshing; the keys remain."""
        self._closed = True
        tasks = {task for task in (self._keeper, self._reading) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _keep_fresh(self) -> None:
        while True:
            self._pause_changed.clear()
            # Not shorter than the interval while keys are missing, or the next read would be too early to confirm them.
            pause_s = self.pause_s() * random.uniform(1.0 if self._missing else 0.9, 1.1)
            try:
                async with asyncio.timeout(pause_s):
                    await self._pause_changed.wait()
            except TimeoutError:
                await self.refresh()

    def pause_s(self) -> float:
        """The pause before the next read, at most ``refresh_s``: shorter while keys are missing, and after a failure,
        from where it grows exponentially."""
        if not self._failures:
            return min(self._refresh_s, self._min_interval_s) if self._missing else self._refresh_s
        return min(self._refresh_s, self._min_interval_s * 2.0 ** min(self._failures - 1, 20))

    def _read_over(self, _: asyncio.Task[None]) -> None:
        self._reading = None

    async def _read(self) -> None:
        try:
            document = await self._fetch(self.url)
            keys = self.keys
            if document != self._document:
                keys = parse_jwks(document, shown_url(self.url), remote=True)
        except KeyMaterialError as error:
            self._failed(str(error))
        except Exception as error:
            # A bug must not end the refreshing: the next attempt may read another document.
            _log.exception("jwks read failed", extra={"url": shown_url(self.url)})
            self._failed(f"{shown_url(self.url)}: {type(error).__name__}")
        else:
            self._succeeded(document, keys)

    def _failed(self, problem: str) -> None:
        if not self._failures:
            extra = {"url": shown_url(self.url), "problem": problem, "keys_kept": len(self.keys)}
            _log.warning("jwks unavailable", extra=extra)
        self._failures += 1
        self.problem = problem

    def _succeeded(self, document: bytes, keys: tuple[VerificationKey, ...]) -> None:
        changed = document != self._document
        if changed or self._failures:
            event = "jwks changed" if changed and self.loaded else "jwks available"
            _log.info(event, extra={"url": shown_url(self.url), "keys": len(keys)})
        self._failures, self.problem, self.loaded = 0, "", True
        before = self._missing
        self._missing = self._missing_from(keys)
        if self._missing and not before:
            # A token with an unknown key may have caused this read, in the middle of a long pause.
            self._pause_changed.set()
        self._document, self.keys = document, keys
        if changed or self._missing != before:
            self.on_change()

    def _missing_from(self, keys: tuple[VerificationKey, ...]) -> dict[Hashable, tuple[VerificationKey, float]]:
        now = self._clock()
        missing = {_name_of(key): (key, now) for key in self.keys} | self._missing
        listed = {_name_of(key) for key in keys}
        return {
            name: (key, since)
            for name, (key, since) in missing.items()
            if name not in listed and now - since < self._min_interval_s
        }


def _name_of(key: VerificationKey) -> Hashable:
    """The identity of a key, equal for two reads of it. The ``kid`` is not part of it."""
    return key.digest(), key.algorithms
