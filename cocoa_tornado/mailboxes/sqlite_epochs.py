"""The epochs of the SQLite mailbox, which have random names (``rules/box.py``)."""

from __future__ import annotations

import secrets
import sqlite3

from ..rules.box import KNOWN_EPOCHS, Epochs
from ..rules.cursors import MAX_EPOCH
from .sqlite_schema import damaged


def epochs_of(text: str) -> Epochs:
    """The epochs as they are stored, oldest first; none in a new file."""
    try:
        names = tuple(map(int, text.split()))
    except ValueError as error:
        raise damaged(f"the epochs in the table meta are malformed: {error}") from error
    return Epochs(names[-1], names) if names else Epochs()


def begin_epoch(database: sqlite3.Connection, epochs: Epochs) -> Epochs:
    """Begin an epoch with a random name, within a transaction. The first one of a new file needs none, as its key is
    random."""
    names = (*epochs.names[1 - KNOWN_EPOCHS :], _new_name(epochs)) if epochs.names else (0,)
    database.execute("UPDATE meta SET value = ? WHERE key = 'eras'", (" ".join(map(str, names)),))
    return Epochs(names[-1], names)


def _new_name(epochs: Epochs) -> int:
    while (name := secrets.randbelow(MAX_EPOCH) + 1) in epochs.names:
        pass
    return name
