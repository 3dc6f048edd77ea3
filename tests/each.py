"""Tests a promise for many rows of a table at once, and names all rows that violate it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from cocoa_tornado.settings.rows import Setting


def assert_each(rows: Iterable[Setting], check: Callable[[Setting], None]) -> None:
    """Call ``check`` with every row, and fail with the key and the problem of each for which it raised."""
    faults, count = [], 0
    for row in rows:
        count += 1
        try:
            check(row)
        # pytest.raises() fails with an exception of pytest's own, which is no Exception.
        except (Exception, pytest.fail.Exception) as error:
            faults.append(f"{row.key}: {type(error).__name__}: {error}")
    assert count, "there is no such row"
    assert not faults, f"{len(faults)} of {count} settings:\n" + "\n".join(faults)
