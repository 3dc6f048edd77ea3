"""The settings: their table, the types of their values, their sources, and the rules between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .table import TABLE as TABLE
    from .table import Settings as Settings


def __getattr__(name: str) -> object:
    # Lazy, because of a cycle: adapters define their settings with the types of this package, and the table includes
    # those settings.
    if name in ("TABLE", "Settings"):
        from . import table

        return getattr(table, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
