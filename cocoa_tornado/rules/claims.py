"""The names under which servers refer to what they hold, or try to hold. Pure.

A *server* is named by its epoch: one incarnation of it, drawn at random and never used again. A server that starts
again, or that has been fenced, has another epoch.
"""

from __future__ import annotations

from typing import NamedTuple


class Claim(NamedTuple):
    """One newcomer's attempt to hold a device; once granted, it names the grant as well.

    The server chooses the number, so that it can withdraw a claim whose answer it has never seen. A number that was
    released is never claimed again.

    :ivar server: the epoch of the server
    :ivar number: grows with every newcomer of this epoch
    """

    server: str
    number: int

    def __repr__(self) -> str:
        return f"<Claim {self.server}/{self.number}>"


class Generation(NamedTuple):
    """Which of a device's admissions this is: a later one compares as greater. Never given twice.

    :ivar era: begins anew, and higher, whenever the store may have lost its counter
    :ivar number: grows with every admission of any device
    """

    era: int
    number: int
