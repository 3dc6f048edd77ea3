"""Decides when the next step of a fan-out is stored beside the groups. Pure."""

from __future__ import annotations

from typing import Final

GROUPS_FIRST: Final = 4
"""How many groups in a row may go before a step of a fan-out."""

PACED_FROM: Final = 10_000
"""A fan-out with this many recipients is paced."""

REST_FACTOR: Final = 4
"""A paced fan-out rests for this many times the duration of its last step, if messages were stored meanwhile: their
latency matters more than when the last of the devices gets the message."""


class FanOutPace:
    """Steps go behind groups that are due, but on under any load.

    :ivar is_resting: no step is due, unless calls wait for a fan-out to be complete
    """

    def __init__(self) -> None:
        self.is_resting = False
        self._groups_first = 0  # stored since the last step, while another one was due
        self._has_stored = False  # since the last step

    def messages_stored(self) -> None:
        self._has_stored = True

    def may_step(self, *, group_is_due: bool) -> bool:
        """Whether to store a step that is due now, or a group before it."""
        if group_is_due and self._groups_first < GROUPS_FIRST:
            self._groups_first += 1
            return False
        self._groups_first = 0
        return True

    def stepped(self, took_s: float, recipients: int) -> float | None:
        """A step was stored. Returns after how many seconds to call :meth:`end_rest`; None: there is no rest.

        :param recipients: how many the fan-out has had; 0: there was no step
        """
        rests = self._has_stored and recipients > PACED_FROM
        self._has_stored = False
        if not rests:
            return None
        self.is_resting = True
        return REST_FACTOR * took_s

    def end_rest(self) -> None:
        self.is_resting = False
