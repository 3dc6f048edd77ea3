"""When Redis is asked about devices: one round trip at a time, with all that has gathered meanwhile."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, TypeAlias

from ..redis_store.faults import RedisFault
from .redis_backlog import Asked, Backlog
from .redis_link import Answers, Outcome, RedisLink
from .redis_scripts import TermOver

RETRY_S: Final = (0.1, 1.0)
"""The first and the longest delay until questions are asked again that Redis did not answer."""

Context: TypeAlias = tuple[str, str]
"""The stamp and the epoch that a question was asked with."""


class Asker(Protocol):
    """Whose questions they are."""

    def may_ask(self) -> bool: ...

    def context(self) -> Context: ...

    def per_device(self) -> int: ...

    def take(self, context: Context, asked: Asked, answers: Answers) -> bool:
        """Returns whether nothing has to be asked again."""

    def give_back(self, context: Context, asked: Asked) -> None:
        """It was not answered."""

    def repeat(self, context: Context, asked: Asked) -> None:
        """Ask for the claims again, after a fault and a delay."""

    def term_over(self, stamp: str) -> None: ...


class Asking:
    """Nearly all questions need no task: they are sent at the end of the loop's turn, and their answers are taken in
    the turn in which they arrive. A task reconnects, loads scripts, and waits after a fault. IOLoop thread only."""

    def __init__(self, asker: Asker, backlog: Backlog, link: RedisLink) -> None:
        self._asker, self._backlog, self._link = asker, backlog, link
        self._is_busy = self._is_closed = False
        self._task: asyncio.Task[None] | None = None
        self._sent: tuple[Context, Asked] | None = None  # without a task

    def soon(self) -> None:
        """Send what has gathered at the end of this turn of the loop, or after the answer that is outstanding."""
        if not self._is_busy and self._may_ask():
            self._is_busy = True
            asyncio.get_running_loop().call_soon(self._ask_now)

    async def close(self) -> None:
        """What was not answered is given back."""
        self._is_closed = True
        sent, self._sent = self._sent, None
        if sent is not None:
            self._asker.give_back(*sent)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _may_ask(self) -> bool:
        return not self._is_closed and self._asker.may_ask()

    def _ask_now(self) -> None:
        if not self._backlog or not self._may_ask():
            self._is_busy = False
            return
        context, asked = self._asker.context(), self._backlog.take()
        self._sent = context, asked
        if not self._link.ask_now(*context, self._asker.per_device(), asked, self._on_outcome):
            self._on_outcome(None)

    def _on_outcome(self, outcome: Outcome) -> None:
        sent, self._sent = self._sent, None
        if sent is None:
            return  # closed
        context, asked = sent
        if isinstance(outcome, Answers) and self._asker.take(context, asked, outcome):
            self._ask_now()
        else:
            self._task = asyncio.get_running_loop().create_task(self._ask(context, asked, outcome))

    async def _ask(self, context: Context, asked: Asked, outcome: Outcome) -> None:
        """Ask until everything is answered.

        :param outcome: that has been taken already; None: ``asked`` has to be asked
        """
        delays = _Delays()
        is_whole = False
        try:
            while True:
                if outcome is None:
                    outcome = await self._outcome(context, asked)
                    is_whole = isinstance(outcome, Answers) and self._asker.take(context, asked, outcome)
                if isinstance(outcome, (TermOver, RedisFault)):
                    self._asker.give_back(context, asked)
                if isinstance(outcome, TermOver):
                    self._asker.term_over(context[0])
                    return
                await delays.wait(is_over=is_whole)
                if isinstance(outcome, RedisFault):
                    self._asker.repeat(context, asked)
                if not self._backlog or not self._may_ask():
                    return
                context, asked, outcome = self._asker.context(), self._backlog.take(), None
        finally:
            self._is_busy, self._task = False, None

    async def _outcome(self, context: Context, asked: Asked) -> Outcome:
        try:
            return await self._link.ask(*context, self._asker.per_device(), asked)
        except (RedisFault, TermOver) as over:
            return over
        except asyncio.CancelledError:
            self._asker.give_back(context, asked)
            raise


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
