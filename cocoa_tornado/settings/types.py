"""The types of settings: numbers, words and lists, and how their values are parsed, validated and formatted.

A type is an annotation by which msgspec validates a value, including bounds and patterns:
``Annotated[int, Meta(ge=0, le=65535)]``. A type that msgspec cannot express, such as a duration, names the class that
parses and formats it: ``Annotated[float, Meta(ge=1), Duration]``. These classes are in ``domain``. :func:`kind_of`
makes a :class:`Kind` of either.

Values are validated one by one, without opening files or resolving names. ``sources`` determines the source of a value,
and ``checks`` validates settings together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

from ..adapters import Library
from ..plain_text import MAX_QUOTED, is_encodable, one_line, quoted, strip_blanks
from ..rules.addresses import masked

T = TypeVar("T")
V = TypeVar("V")

# Larger numbers are shown in hexadecimal: str() rejects numbers of thousands of decimal digits, which TOML's 0x
# notation can produce.
_MAX_DECIMAL_BITS: Final = 192
_TYPE_WORDS: Final = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "an array",
    dict: "a table",
    type(None): "null",
}
_FLAG_WORDS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


class WrongValue(ValueError):
    """A value is invalid for its kind.

    ``str()`` is the problem in one short, printable line. ``Kind.allowed`` has the allowed values.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(one_line(problem))


def shown(value: object) -> str:
    """``value`` for a message: one short line, without the password of a URL."""
    if isinstance(value, str):
        return quoted(masked(value))
    if isinstance(value, int) and value.bit_length() > _MAX_DECIMAL_BITS:
        return one_line(f"{value:#x}", MAX_QUOTED)
    return one_line(str(value).lower(), MAX_QUOTED)


def decimal_text(value: float) -> str:
    """A finite ``value`` in digits without an exponent. ``float()`` parses the text to exactly the same value.

    >>> decimal_text(1e-7), decimal_text(30.0), decimal_text(1e18)
    ('0.0000001', '30', '1000000000000000000')
    """
    return f"{Decimal(repr(value)):f}".removesuffix(".0")


class Kind(Generic[T]):
    """A type of values, with its bounds. The base class is for text, whose length and pattern msgspec validates.

    Parsing any text, or any value of a TOML or JSON type, returns a value of the kind or raises :class:`WrongValue`,
    and nothing else. :meth:`show` formats a value such that :meth:`from_text` returns an equal one.

    :cvar metavar: the placeholder of a value in a command's help
    :cvar takes: the accepted TOML types
    :cvar refusal: the error text for a value that msgspec rejects
    :cvar is_secret: whether messages hide values
    """

    metavar: str = "TEXT"
    takes: tuple[type, ...] = (str,)
    refusal: str = "is not allowed"
    is_secret: bool = False
    allowed: str = ""
    """The allowed values, for messages and the reference."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        notes = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
        self.bounds = next((note for note in notes if isinstance(note, Meta)), Meta())
        self.metavar = self.bounds.title or self.metavar
        self.allowed = self.bounds.description or self._describe()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.annotation})"

    def _describe(self) -> str:
        return self.allowed

    def from_text(self, text: str) -> T:
        """Parse the text of an option or an environment variable. Raises :class:`WrongValue`."""
        if not is_encodable(text):
            raise WrongValue("it is not UTF-8")
        return self._judge(self._parse(text), text)

    def from_value(self, value: object) -> T:
        """Convert a typed value, such as one of TOML. Raises :class:`WrongValue`."""
        if isinstance(value, str) and str in self.takes:
            return self.from_text(value)
        if type(value) not in self.takes:
            is_shown = isinstance(value, bool | int | float | str) and not self.is_secret
            word = _TYPE_WORDS.get(type(value), "a date or a time")
            raise WrongValue(f"{shown(value) if is_shown else 'it'} is {word}")
        return self._judge(value, value)

    def _parse(self, text: str) -> object:
        """Convert valid UTF-8 text to a value for msgspec. Raises :class:`WrongValue` only."""
        return text

    def _judge(self, value: object, given: object) -> T:
        # With strict=False msgspec would parse text itself, but accept 8080.0 and 1e3 as integers, and reject "yes".
        try:
            result: T = msgspec.convert(value, self.annotation, dec_hook=_as_it_is)
        except msgspec.ValidationError:
            raise WrongValue(f"{'it' if self.is_secret else shown(given)} {self.refusal}") from None
        return result

    def show(self, value: T) -> str:
        """Format ``value`` so that :meth:`from_text` parses it to an equal value."""
        return str(value)

    def relative_to(self, value: T, folder: Path) -> T:
        """Resolve a relative path in ``value`` against ``folder``. Raises :class:`WrongValue`."""
        return value

    def files(self, value: T) -> Iterable[Path]:
        """The files that ``value`` names and that must exist."""
        return ()

    def folder(self, value: T) -> str:
        """The folder that ``value`` names and that must exist; "" for none."""
        return ""

    def library(self, value: T) -> Library | None:
        """The library that ``value`` needs and a plain installation lacks, if any."""
        return None


# Numbers and words


class Whole(Kind[int]):
    """A whole number."""

    metavar = "N"
    takes = (int,)
    refusal = "is out of range"

    def _describe(self) -> str:
        return f"a whole number from {self.bounds.ge} to {self.bounds.le}"

    def _parse(self, text: str) -> object:
        digits = strip_blanks(text)
        # No setting accepts more than 18 digits, and int() accepts 18.
        if not re.fullmatch(r"-?[0-9]{1,18}", digits):
            raise WrongValue(f"{shown(text)} is not a whole number")
        return int(digits)

    def _judge(self, value: object, given: object) -> int:
        return super()._judge(value, value)


class WholeOrDefault(Whole):
    """A whole number, or -1 for the default of another program."""

    def _describe(self) -> str:
        return f"{super()._describe()}, or -1"

    def _judge(self, value: object, given: object) -> int:
        return -1 if value == -1 else super()._judge(value, given)


class OptionalWhole(Kind[int | None]):
    """A whole number; an empty text is None."""

    metavar = "N"
    takes = (int,)
    refusal = "is out of range"

    def _describe(self) -> str:
        return f"a whole number from {self.bounds.ge} to {self.bounds.le}, or nothing"

    def _parse(self, text: str) -> object:
        digits = strip_blanks(text)
        if not re.fullmatch(r"(-?[0-9]{1,18})?", digits):
            raise WrongValue(f"{shown(text)} is not a whole number")
        return int(digits) if digits else None

    def _judge(self, value: object, given: object) -> int | None:
        if value is None:
            return None
        # msgspec has bounds for numbers only, not for a union.
        bounded: Any = Annotated[int, self.bounds]
        return Whole(bounded).from_value(value)

    def show(self, value: int | None) -> str:
        return "" if value is None else str(value)


class Number(Kind[float]):
    """A number."""

    metavar = "NUMBER"
    takes: tuple[type, ...] = (int, float)
    refusal = "is not such a number"

    def _parse(self, text: str) -> object:
        digits = strip_blanks(text)
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", digits):
            raise WrongValue(f"{shown(text)} {self.refusal}")
        return float(digits)

    def _judge(self, value: object, given: object) -> float:
        # Adding zero turns -0.0 into 0.0, which is formatted without a sign.
        return super()._judge(value, given) + 0.0

    def show(self, value: float) -> str:
        return decimal_text(value)


class Flag(Kind[bool]):
    """Yes or no."""

    metavar = ""
    takes = (bool, str)
    refusal = "is neither true nor false"
    allowed = "true, false, yes, no, on, off, 1, 0"

    def _parse(self, text: str) -> object:
        return _FLAG_WORDS.get(strip_blanks(text).lower())

    def show(self, value: bool) -> str:
        return "true" if value else "false"


class Choice(Kind[str]):
    """One of a few words, case-insensitive.

    The annotation is a ``Literal``, and may have a mapping from words to the libraries that they need.
    """

    refusal = "is not one of them"

    def __init__(self, annotation: Any) -> None:
        literal, *notes = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
        self.words: tuple[str, ...] = get_args(literal)
        self.libraries: Mapping[str, Library] = next((note for note in notes if isinstance(note, Mapping)), {})
        super().__init__(annotation)
        self.metavar = f"[{'|'.join(filter(None, self.words))}]"

    def _describe(self) -> str:
        return ", ".join(word or "nothing" for word in self.words)

    def _parse(self, text: str) -> object:
        folded = strip_blanks(text).lower()
        return next((word for word in self.words if word.lower() == folded), text)

    def library(self, value: str) -> Library | None:
        return self.libraries.get(value)


# Lists


class ListOf(Kind[tuple[T, ...]]):
    """A list of values of one kind. :meth:`from_text` parses one item; :meth:`show` is for messages."""

    def __init__(self, item: Kind[T]) -> None:
        self.item = item
        self.metavar, self.allowed, self.is_secret = item.metavar, item.allowed, item.is_secret

    def __repr__(self) -> str:
        return f"ListOf({self.item})"

    def from_text(self, text: str) -> tuple[T, ...]:
        return self.from_texts([text])

    def from_value(self, value: object) -> tuple[T, ...]:
        """Convert a list of items."""
        if not isinstance(value, list):
            raise WrongValue(f"it is {_TYPE_WORDS.get(type(value), 'a date or a time')}, not an array")
        return tuple(self.item.from_value(_not_empty(item)) for item in value)

    def from_texts(self, texts: Sequence[str]) -> tuple[T, ...]:
        """Parse each of ``texts`` as one item."""
        return tuple(self.item.from_text(_not_empty(text)) for text in texts)

    def show(self, value: tuple[T, ...]) -> str:
        return ",".join(self.item.show(item) for item in value)

    def relative_to(self, value: tuple[T, ...], folder: Path) -> tuple[T, ...]:
        return tuple(self.item.relative_to(item, folder) for item in value)

    def files(self, value: tuple[T, ...]) -> Iterator[Path]:
        for item in value:
            yield from self.item.files(item)


_BY_TYPE: Final[Mapping[Any, type[Kind[Any]]]] = {int: Whole, float: Number, bool: Flag, str: Kind, Literal: Choice}


def kind_of(annotation: Any) -> Kind[Any]:
    """The kind for a setting's annotation."""
    bare, *notes = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    for note in notes:
        if isinstance(note, Kind):
            return note
        if isinstance(note, type) and issubclass(note, Kind):
            return note(annotation)
    if get_origin(bare) is tuple:
        return ListOf(kind_of(get_args(bare)[0]))
    return _BY_TYPE[get_origin(bare) or bare](annotation)


def _as_it_is(_: type, value: object) -> object:
    return value


def _not_empty(item: V) -> V:
    if item == "":
        raise WrongValue("one of its items is empty")
    return item
