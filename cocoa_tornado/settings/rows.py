"""The rows of the table of settings, which are the fields of ``Settings`` and of the adapters' settings."""

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

    :ivar key: the name in a file, from which the names of the variable and the option derive
    :ivar attribute: the name in ``Settings``: the key, with the suffix ``_s`` for seconds
    :ivar default: a value of the kind's type
    :ivar summary: one line for the command's help
    :ivar more: further text for the reference
    :ivar reloadable: whether a reload (SIGHUP) applies a change without a restart
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
        """Whether messages, reprs and help hide its value, and ``@FILE`` reads it from a file."""
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
        """Whether the setting is a list."""
        return isinstance(self.kind, ListOf)

    @property
    def default_text(self) -> str:
        """The default in the notation of its kind; '' if there is none."""
        return "" if self.secret else self.kind.show(self.default)


class Fault(NamedTuple):
    """A violated rule between settings.

    :ivar keys: the settings that the rule compares; the first is reported if all have the same source
    """

    keys: tuple[str, ...]
    problem: str
    allowed: str


def row(section: str, default: T, summary: str, more: str = "", *, reloadable: bool = False) -> T:
    """A dataclass field with its row of the table. For the type checker, it has the type of the default."""
    columns = {"section": section, "summary": summary, "more": more, "reloadable": reloadable}
    field: T = dataclasses.field(default=default, metadata=columns)
    return field


def rows_of(settings: type[Any], sections: Sequence[str]) -> Iterator[Setting]:
    """The rows of a dataclass, all of whose fields :func:`row` has made, in the order of ``sections``."""
    annotations = get_type_hints(settings, include_extras=True)
    for field in sorted(dataclasses.fields(settings), key=lambda field: sections.index(field.metadata["section"])):
        kind = kind_of(annotations[field.name])
        key = field.name.removesuffix("_s") if isinstance(kind, Duration) else field.name
        yield Setting(key=key, attribute=field.name, kind=kind, default=field.default, **field.metadata)


def together(settings: object, *keys: str) -> Iterator[Fault]:
    """Yield a fault if some of ``keys`` are set and others are not. Keys must be attribute names too."""
    given = [key for key in keys if getattr(settings, key)]
    missing = [key for key in keys if key not in given]
    if given and missing:
        yield Fault(tuple(given), f"{missing[0]} is missing", f"{' and '.join(keys)} together, or neither")
