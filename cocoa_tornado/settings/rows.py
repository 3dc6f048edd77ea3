"""What a row of the table of settings is. The rows are the fields of ``Settings`` and of the adapters' settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, get_type_hints

from .domain import Duration
from .types import Kind, ListOf, kind_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table.

    :ivar key: the name in a file, from which the other two are made
    :ivar attribute: the name in ``Settings``: the key, with ``_s`` added where the value is seconds
    :ivar default: of the kind's own type
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
    reloadable: bool = False

    @property
    def secret(self) -> bool:
        """True if no message, repr or help shows its value, and ``@FILE`` reads it from a file."""
        return self.kind.is_secret

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


class Fault(NamedTuple):
    """A rule between settings that does not hold.

    :ivar keys: the settings in it; the one to blame first, if all come from the same source
    """

    keys: tuple[str, ...]
    problem: str
    allowed: str


def row(section: str, default: T, summary: str, more: str = "", *, reloadable: bool = False) -> T:
    """A field of a dataclass with its row of the table; the type checker sees the default's type."""
    columns = {"section": section, "summary": summary, "more": more, "reloadable": reloadable}
    field: T = dataclasses.field(default=default, metadata=columns)
    return field


def rows_of(settings: type[Any], sections: Sequence[str]) -> Iterator[Setting]:
    """The rows of a dataclass whose fields are all made by :func:`row`, section by section, in their order."""
    annotations = get_type_hints(settings, include_extras=True)
    for field in sorted(dataclasses.fields(settings), key=lambda field: sections.index(field.metadata["section"])):
        kind = kind_of(annotations[field.name])
        key = field.name.removesuffix("_s") if isinstance(kind, Duration) else field.name
        yield Setting(key=key, attribute=field.name, kind=kind, default=field.default, **field.metadata)


def together(settings: object, *keys: str) -> Iterator[Fault]:
    """A fault if some of ``keys``, which are attributes too, are given and others are not."""
    given = [key for key in keys if getattr(settings, key)]
    missing = [key for key in keys if key not in given]
    if given and missing:
        yield Fault(tuple(given), f"{missing[0]} is missing", f"{' and '.join(keys)} together, or neither")
