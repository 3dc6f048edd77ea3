"""Output for terminals: tables, colours, and text from devices and producers, which must not control the terminal."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import click

from cocoa_tornado.plain_text import one_line

NOTHING: Final = "-"
"""Stands for an absent value."""
MAX_TEXT: Final = 4_000
"""Characters of one value. Ids are shorter, and shown whole."""
_GAP: Final = "  "


class Cell(NamedTuple):
    """A text with a colour."""

    text: str
    colour: str | None = None


Row: TypeAlias = Sequence[Cell | str]


def plain(value: object, limit: int = MAX_TEXT) -> str:
    """Return a value of JSON in one line that controls no terminal: what is not printable, such as an escape sequence
    or a mark that turns the direction of text around, is escaped as in Python. A list is its values with commas."""
    if value is None or value in ("", []):
        return NOTHING
    if isinstance(value, list):
        value = ", ".join(plain(each) for each in value)
    return one_line(str(value), limit)


def without_controls(text: str) -> str:
    """Return JSON text with JSON's escapes (``\\u202e``) for what a terminal would obey. It stays the same JSON."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t\r" else _json_escape(char) for char in text)


def table(headers: Sequence[str], rows: Iterable[Row], right: Collection[str] = ()) -> list[str]:
    """Return the lines of a table. The cells are shown as they are: :func:`plain` makes them.

    :param right: headers of the columns that are aligned to the right
    """
    cells = [[each if isinstance(each, Cell) else Cell(each) for each in row] for row in rows]
    widths = [
        max([columns_of(header), *(columns_of(row[at].text) for row in cells)]) for at, header in enumerate(headers)
    ]
    is_right = [header in right for header in headers]
    heading = [Cell(header) for header in headers]
    lines = [click.style(_line(heading, widths, is_right), bold=True)]
    return lines + [_line(row, widths, is_right) for row in cells]


def facts(pairs: Mapping[str, Cell | str]) -> list[str]:
    """Return one line for each name with its value."""
    width = max(columns_of(name) for name in pairs)
    return [f"{name.ljust(width)}{_GAP}{paint(value)}" for name, value in pairs.items()]


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: two for an East Asian wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(char) in ("Mn", "Me") else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def wants_colours(environ: Mapping[str, str] | None = None) -> bool | None:
    """click's ``Context.color``: None, which leaves it to whether there is a terminal, unless ``NO_COLOR`` is set or
    the terminal has none."""
    environ = os.environ if environ is None else environ
    return False if environ.get("NO_COLOR") or environ.get("TERM") == "dumb" else None


def _line(row: Sequence[Cell], widths: Sequence[int], is_right: Sequence[bool]) -> str:
    parts, last = [], len(row) - 1
    for at, cell in enumerate(row):
        blanks = " " * (widths[at] - columns_of(cell.text))
        shown = paint(cell)
        # Nothing behind the last one, so that a narrow terminal does not wrap blanks.
        parts.append(blanks + shown if is_right[at] else shown if at == last else shown + blanks)
    return _GAP.join(parts).rstrip()


def paint(cell: Cell | str) -> str:
    """Return the text in its colour. click removes that where there is no terminal."""
    if isinstance(cell, str) or cell.colour is None:
        return cell if isinstance(cell, str) else cell.text
    return click.style(cell.text, fg=cell.colour)


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
