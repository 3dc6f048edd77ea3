"""What a row of the table of settings is. The rows themselves stand in ``settings``, as the fields of ``Settings``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from .settings_kinds import Duration, Kind, ListOf

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table.

    :ivar key: the name in a file, from which the other two are made
    :ivar attribute: the name in ``Settings``: the key, with ``_s`` added where the value is seconds
    :ivar default: of the kind's own type
    :ivar secret: no message, repr or help shows its value, and ``@FILE`` reads it from a file
    :ivar reloadable: a reload (SIGHUP) applies a change of it without a restart
    :ivar summary: one line for the command's help
    :ivar more: what the reference adds to it
    """

    key: str
    attribute: str
    kind: Kind[Any]
    default: object
    section: str
    summary: str
    more: str = ""
    secret: bool = False
    reloadable: bool = False

    @property
    def environment(self) -> str:
        """The environment variable: ``COCOA_DUPLICATE_CHALLENGE``."""
        return f"COCOA_{self.key.upper()}"

    @property
    def option(self) -> str:
        """The option: ``--duplicate-challenge``."""
        return f"--{self.key.replace('_', '-')}"

    @property
    def is_list(self) -> bool:
        """True if it holds several values."""
        return isinstance(self.kind, ListOf)

    @property
    def default_text(self) -> str:
        """The default as a person would write it; '' if there is none."""
        return "" if self.secret else self.kind.show(self.default)


def row(
    section: str,
    default: T,
    kind: Kind[T],
    summary: str,
    more: str = "",
    *,
    secret: bool = False,
    reloadable: bool = False,
) -> T:
    """A field of a dataclass with its row of the table; the type checker sees the default's type."""
    columns = {"section": section, "kind": kind, "summary": summary, "more": more}
    flags = {"secret": secret, "reloadable": reloadable}
    field: T = dataclasses.field(default=default, metadata={**columns, **flags})
    return field


def rows_of(settings: type[Any]) -> Iterator[Setting]:
    """The rows of a dataclass whose fields are all made by :func:`row`, in their order."""
    for field in dataclasses.fields(settings):
        key = field.name.removesuffix("_s") if isinstance(field.metadata["kind"], Duration) else field.name
        yield Setting(key=key, attribute=field.name, default=field.default, **field.metadata)
