"""When to query Redis about devices: one round trip at a time, with all questions that have accumulated meanwhile."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol, TypeAlias

from ..redis_store.faults import RedisFault
from .redis_backlog import Asked, Backlog
from .redis_link import Answers, Outcome, RedisLink
from .redis_scripts import TermOver

RETRY_S: Final = (0.1, 1.0)
"""The first and the longest delay until questions are asked again that Redis did not answer."""

Context: TypeAlias = tuple[str, str]
"""The stamp and the epoch that a question was asked with."""

log = logging.getLogger("cocoa.presence")


class Asker(Protocol):
    """The owner of the questions."""

    def may_ask(self) -> bool: ...

    def context(self) -> Context: ...

    def per_device(self) -> int: ...

    def take(self, context: Context, asked: Asked, answers: Answers) -> bool:
        """Take the answers. Return False if some questions must be asked again. An error affects only its own
        question."""

    def give_back(self, context: Context, asked: Asked) -> None:
        """Take back a round trip that was not answered."""

    def repeat(self, context: Context, asked: Asked) -> None:
        """Send the claims again, after a fault and a delay."""

    def term_over(self, stamp: str) -> None: ...


class Asking:
    """Sends the questions. Nearly all need no task: they are sent at the end of the loop's turn, and their answers are
    handled in the turn in which they arrive. A task reconnects, loads scripts, and waits after a fault. IOLoop thread
    only."""

    def __init__(self, asker: Asker, backlog: Backlog, link: RedisLink) -> None:
        self._asker, self._backlog, self._link = asker, backlog, link
        self._is_busy = self._is_closed = False
        self._task: asyncio.Task[None] | None = None
        self._sent: tuple[Context, Asked] | None = None  # and neither answered nor given back

    def soon(self) -> None:
        """Send the accumulated questions at the end of this turn of the loop, or after the pending answer."""
        if not self._is_busy and self._may_ask():
            self._is_busy = True
            asyncio.get_running_loop().call_soon(self._ask_now)

    async def close(self) -> None:
        """Stop; unanswered questions are given back."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._give_back()

    def _may_ask(self) -> bool:
        return not self._is_closed and self._asker.may_ask()

    def _ask_now(self) -> None:
        if not self._backlog or not self._may_ask():
            self._is_busy = False
            return
        context, asked = self._sent = self._asker.context(), self._backlog.take()
        if not self._link.ask_now(*context, self._asker.per_device(), asked, self._on_outcome):
            self._on_outcome(None)

    def _on_outcome(self, outcome: Outcome) -> None:
        if self._is_closed:
            return
        if isinstance(outcome, Answers) and self._take(outcome):
            self._ask_now()
        else:
            self._task = asyncio.get_running_loop().create_task(self._ask(outcome))

    def _take(self, answers: Answers) -> bool:
        """Take the answers. After an error only the look-ups are asked again, because callers wait for them; later
        questions are asked regardless."""
        assert self._sent is not None
        (context, asked), self._sent = self._sent, None
        try:
            return self._asker.take(context, asked, answers)
        except Exception:
            log.exception("answers of presence dropped")
            self._asker.give_back(context, Asked((), (), asked.look_ups))
            return not asked.look_ups

    def _give_back(self) -> tuple[Context, Asked] | None:
        """Give back the questions that were sent, if they were not answered."""
        sent, self._sent = self._sent, None
        if sent is not None:
            self._asker.give_back(*sent)
        return sent

    async def _ask(self, outcome: Outcome) -> None:
        """Ask until everything is answered.

        :param outcome: of the round trip that was sent; None: send it first. Its answers are already handled
        """
        try:
            await self._ask_all(outcome)
        except Exception:
            log.exception("answers of presence dropped")
        finally:
            self._is_busy, self._task = False, None
            if self._backlog:
                self.soon()

    async def _ask_all(self, outcome: Outcome) -> None:
        delays = _Delays()
        is_whole = False
        while True:
            if outcome is None:
                outcome = await self._outcome()
                is_whole = isinstance(outcome, Answers) and self._take(outcome)
            unanswered = self._give_back()
            if isinstance(outcome, TermOver) and unanswered is not None:
                (stamp, _), _ = unanswered
                self._asker.term_over(stamp)
                return
            await delays.wait(is_over=is_whole)
            if isinstance(outcome, RedisFault) and unanswered is not None:
                self._asker.repeat(*unanswered)
            if not self._backlog or not self._may_ask():
                return
            self._sent, outcome = (self._asker.context(), self._backlog.take()), None

    async def _outcome(self) -> Outcome:
        assert self._sent is not None
        context, asked = self._sent
        try:
            return await self._link.ask(*context, self._asker.per_device(), asked)
        except (RedisFault, TermOver) as over:
            return over


class _Delays:
    """Between attempts."""

    def __init__(self) -> None:
        self._next_s, self._longest_s = RETRY_S

    async def wait(self, *, is_over: bool) -> None:
        """
        :param is_over: the last attempt has succeeded
        """
        if is_over:
            self._next_s = RETRY_S[0]
            return
        await asyncio.sleep(self._next_s)
        self._next_s = min(self._longest_s, 2 * self._next_s)
