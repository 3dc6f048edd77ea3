"""How servers name what they hold or claim. Pure.

A *server* is named by its epoch: one incarnation, drawn at random and never reused. A server that restarts, or that was
fenced, gets a new epoch.
"""

from __future__ import annotations

import zlib
from typing import Final, NamedTuple

BUCKETS: Final = 16_384
"""The number of hashes that hold the devices: small ones, which take a third of the memory of one key per device."""


class Claim(NamedTuple):
    """One attempt of a new connection to hold a device. Once granted, it names the grant too.

    The server chooses the number, so it can withdraw a claim without having seen the answer. A number that was released
    is never claimed again.

    :ivar server: the server's epoch
    :ivar number: grows with every claim of this epoch
    """

    server: str
    number: int

    def __repr__(self) -> str:
        return f"<Claim {self.server}/{self.number}>"


class Generation(NamedTuple):
    """The number of an admission. A later one compares greater, and none is given twice.

    :ivar term: grows whenever the store may have lost its counter
    :ivar number: grows with every admission of any device
    """

    term: int
    number: int


class FencingToken(NamedTuple):
    """Identifies a grant in a store that several servers share. A mailbox in the same store checks it wherever the
    grant is used, so that nothing which a superseded connection does takes effect.

    :ivar term: of the grant's generation
    :ivar holder: ``<epoch>:<number of the claim>:<number of the generation>``
    """

    term: int
    holder: str


def bucket_of(device: bytes) -> int:
    """The bucket, of ``BUCKETS``, that a device belongs to."""
    return zlib.crc32(device) % BUCKETS
