"""The answers that the parent gathers from its workers, for one of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from .messages import Topic

PATIENCE_S: Final = 1.0
"""How long to wait for the workers' answers."""

MAX_OPEN: Final = 64
"""Questions under way; further ones are not asked. Each worker asks for one answer of a topic at a time, so that more
of them than this come only from broken workers."""


@dataclass(slots=True)
class Gathering:
    """One question to all workers.

    :ivar asker: the worker that needs the answer, and its number for it
    :ivar waiting: the workers that have not answered yet
    :ivar silent: those that ended before they answered, or did not run
    """

    topic: Topic
    asker: int
    asker_number: int
    until: float
    waiting: set[int]
    silent: set[int]
    answers: dict[int, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[int]:
        """The workers without an answer, once it is complete."""
        return sorted(self.waiting | self.silent)


class Gatherings:
    """All questions under way, by number."""

    def __init__(self) -> None:
        self._open: dict[int, Gathering] = {}
        self._last = 0

    def ask(
        self, topic: Topic, asker: int, asker_number: int, up: Iterable[int], missing: Iterable[int], now: float
    ) -> int | None:
        """Begin a question.

        :param up: the workers to ask
        :param missing: the workers that cannot be asked
        :returns: the question's number, for the workers; None if there are too many
        """
        if len(self._open) >= MAX_OPEN:
            return None
        self._last += 1
        self._open[self._last] = Gathering(topic, asker, asker_number, now + PATIENCE_S, set(up), set(missing))
        return self._last

    def on_answer(self, worker: int, number: int, text: str) -> None:
        """An answer; one that is late, or was not asked for, has no effect."""
        gathering = self._open.get(number)
        if gathering is not None and worker in gathering.waiting:
            gathering.waiting.remove(worker)
            gathering.answers[worker] = text

    def on_exit(self, worker: int) -> None:
        """The worker has ended: drop its own questions, and stop waiting for its answers."""
        self._open = {number: one for number, one in self._open.items() if one.asker != worker}
        for gathering in self._open.values():
            if worker in gathering.waiting:
                gathering.waiting.remove(worker)
                gathering.silent.add(worker)

    def complete(self, now: float) -> list[Gathering]:
        """Take out the questions that all have answered, and those whose time is over."""
        done = [number for number, one in self._open.items() if not one.waiting or now >= one.until]
        return [self._open.pop(number) for number in done]

    def next_at(self) -> float | None:
        """When the time of the next one is over."""
        return min((one.until for one in self._open.values()), default=None)
