"""How to treat a second stop signal: as a repetition of the first, or as an order to quit at once. Pure."""

from __future__ import annotations

from typing import Final, Literal

REPEAT_S: Final = 1.0
"""Shells, ``timeout`` and package runners signal a process and its group, so one order arrives twice within
milliseconds. An impatient person takes longer."""

Meaning = Literal["stop", "repeat", "leave"]


def meaning_of_signal(first_at: float | None, now: float) -> Meaning:
    """Return the meaning of a SIGTERM or SIGINT. Either may repeat the other.

    :param first_at: when the first signal came; None if this is the first
    :param now: by the same clock, in seconds
    """
    if first_at is None:
        return "stop"
    return "repeat" if now - first_at < REPEAT_S else "leave"
