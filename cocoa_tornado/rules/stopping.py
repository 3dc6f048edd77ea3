"""What a signal to stop means: the same order said twice, or a second one. Pure."""

from __future__ import annotations

from typing import Final, Literal

REPEAT_S: Final = 1.0
"""A shell, ``timeout`` and package runners signal a process and its group, so that one order arrives twice within
milliseconds. A person who loses patience takes longer."""

Meaning = Literal["stop", "repeat", "leave"]


def meaning_of_signal(first_at: float | None, now: float) -> Meaning:
    """The meaning of a SIGTERM or SIGINT, of which either may repeat the other.

    :param first_at: when the first one came; None if this is the first
    :param now: the same clock, in seconds
    """
    if first_at is None:
        return "stop"
    return "repeat" if now - first_at < REPEAT_S else "leave"
