"""The settings: their table, the types of their values, where the values come from, and the rules between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .table import TABLE as TABLE
    from .table import Settings as Settings


def __getattr__(name: str) -> object:
    # Adapters define their settings with this package's types, and the table is made of those: it is imported when it
    # is asked for, so that an adapter's settings can be imported first.
    if name in ("TABLE", "Settings"):
        from . import table

        return getattr(table, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
