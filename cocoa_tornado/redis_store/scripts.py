"""Lua scripts, and the keys that they work on. No I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

PREFIX: Final = b"cocoa:{box}:"
"""Of every key. Its braces keep all keys in one slot of a cluster, so any script may read any of them."""

Command = list[bytes]


class Script:
    """A script, called by its digest. Redis forgets all scripts when it restarts.

    :param parts: of its text
    :param key: the script's KEYS[1]
    """

    def __init__(self, *parts: str, key: bytes) -> None:
        self.text = "".join(parts).encode()
        digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()
        self._call = (b"EVALSHA", digest, b"1", key)

    def call(self, *arguments: bytes) -> Command:
        return [*self._call, *arguments]


def loading(scripts: Iterable[Script]) -> list[Command]:
    """The commands that make Redis know these scripts."""
    return [[b"SCRIPT", b"LOAD", script.text] for script in scripts]
