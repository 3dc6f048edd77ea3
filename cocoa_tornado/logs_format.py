"""Formats a log record as one line: key=value text for people, JSON for machines.

For any record, the line is valid UTF-8 of at most ``MAX_LINE_BYTES``, without control or format characters, line
separators and tokens. Only a traceback in the text format takes several lines, which are indented. Values may come from
untrusted clients: a header, a claim of a token, the message of an exception.
"""

from __future__ import annotations

import logging
import math
import re
import traceback
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from json import JSONEncoder
from typing import Final, Literal

from .logs_redaction import redact

LogFormat = Literal["text", "json"]

MAX_FIELD: Final = 1_000
"""The largest number of characters of a formatted value, escapes included. Only untrusted values are longer."""

MAX_TRACEBACK: Final = 12_000
"""The largest number of characters of a traceback; escapes may at most double it. The middle of a longer one is
dropped: its end shows what happened, its beginning where."""

MAX_LINE_BYTES: Final = 64 * 1024

_MAX_DEPTH: Final = 4
_MAX_REPR_DEPTH: Final = 20
_BRACKETS: Final[dict[type, tuple[str, str]]] = {list: ("[", "]"), tuple: ("(", ")"), dict: ("{", "}"), set: ("{", "}")}
_encode_string: Final = JSONEncoder(ensure_ascii=False).encode
_MORE: Final = "..."

# All attributes of a record that do not come from ``extra``. Python 3.12 added taskName.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_OURS: Final = frozenset({"timestamp", "level", "logger", "event", "exception", "fields_dropped"})

# The end of truncated text may be the beginning of a secret, too short to be recognized by its length.
_CUT_BEARER: Final = re.compile(r"([Bb]earer )\S*$")
# A value that needs no quotes in the text form.
_PLAIN: Final = re.compile(r"[^\s=\"'\\]+")

_RESET, _BOLD, _CYAN, _MAGENTA = "\x1b[0m", "\x1b[1m", "\x1b[36m", "\x1b[35m"
_LEVEL_COLOURS: Final = {"debug": "\x1b[32m", "info": "\x1b[32m", "warning": "\x1b[33m"}
_RED: Final = "\x1b[31m"


class JsonFormatter(logging.Formatter):
    """One compact JSON object per line.

    A parsed text value equals the logged text, truncated at its bound. Lone surrogates, which JSON parsers reject, are
    escaped as in a Python literal.
    """

    def format(self, record: logging.LogRecord) -> str:
        members = [
            ("timestamp", f'"{_timestamp(record)}"'),
            ("level", _json_name(record.levelname.lower())),
            ("logger", _json_name(record.name)),
            ("event", json_text(_event(record))),
        ]
        members += [(name, json_value(value)) for name, value in _extra(record).items()]
        exception = _exception(record)
        if exception:
            members.append(("exception", _json_string(_middle_dropped(exception), 2 * MAX_TRACEBACK)))
        return _fitting([f"{_json_name(name)}:{value}" for name, value in members], _json_line)


class TextFormatter(logging.Formatter):
    """``TIME [level] event [logger] key=value ...``. A value with whitespace, quotes or escapes is quoted."""

    def __init__(self, colors: bool = False) -> None:
        super().__init__()
        self._paint: Callable[[str, str], str] = _painted if colors else _unpainted

    def format(self, record: logging.LogRecord) -> str:
        paint, level = self._paint, record.levelname.lower()
        level_colour = _LEVEL_COLOURS.get(level, _RED)
        name, event = _text_name(record.name), text_escaped(_event(record))
        head = f"{_timestamp(record)} [{paint(level_colour, f'{level:<9}')}] {paint(_BOLD, f'{event:<32}')} [{name}]"
        pairs = [
            f"{paint(_CYAN, _text_name(key))}={paint(_MAGENTA, text_value(value))}"
            for key, value in _extra(record).items()
        ]
        line = _fitting([head, *pairs], " ".join)
        exception = _exception(record)
        if exception:
            # Indented, so that the text of an exception can't imitate a log line.
            lines = _escaped(_middle_dropped(exception), 2 * MAX_TRACEBACK, keep="\n").split("\n")
            line = _cut_to_bytes("\n    ".join([line, *lines]))
        return line


@lru_cache(maxsize=1024)
def _text_name(name: str) -> str:
    """The name of a logger or a field, which the code has chosen."""
    return text_escaped(name)


@lru_cache(maxsize=1024)
def _json_name(name: str) -> str:
    return json_text(name)


def make_formatter(log_format: LogFormat, colors: bool = False) -> logging.Formatter:
    """Return a formatter; the fields in ``extra`` become keys of the line."""
    return JsonFormatter() if log_format == "json" else TextFormatter(colors)


def json_value(value: object, depth: int = 0) -> str:
    """JSON of at most ``MAX_FIELD`` characters without quotes. A longer array or object becomes a truncated string."""
    if isinstance(value, str):
        return json_text(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return int.__repr__(value)
    if isinstance(value, float) and math.isfinite(value):
        return float.__repr__(value)
    if isinstance(value, dict | list | tuple) and depth < _MAX_DEPTH:
        shown = _json_object(value, depth) if isinstance(value, dict) else _json_array(value, depth)
        if len(shown) <= MAX_FIELD:
            return shown
    return json_text(_repr(value))


def _json_object(value: dict[object, object], depth: int) -> str:
    members = (f"{json_text(str(key))}:{json_value(inner, depth + 1)}" for key, inner in value.items())
    return f"{{{','.join(_not_much_longer(members))}}}"


def _json_array(value: list[object] | tuple[object, ...], depth: int) -> str:
    return f"[{','.join(_not_much_longer(json_value(inner, depth + 1) for inner in value))}]"


def _not_much_longer(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces until they exceed the bound, so that the rest of a long list is not formatted."""
    room = MAX_FIELD
    for piece in pieces:
        yield piece
        room -= len(piece)
        if room < 0:
            return


def json_text(text: str) -> str:
    """A JSON string of at most ``MAX_FIELD`` characters between its quotes, without tokens."""
    return _json_string(redacted(text), MAX_FIELD)


def _json_string(text: str, limit: int) -> str:
    quoted = _encode_string(text)
    if not text.isprintable():
        quoted = "".join(map(_json_char, quoted))
    if len(quoted) <= limit + 2:
        return quoted
    return _cut_json(text, limit)


def _cut_json(text: str, limit: int) -> str:
    pieces, room = [], limit - len(_MORE)
    for char in text:
        piece = "".join(map(_json_char, _encode_string(char)[1:-1]))
        room -= len(piece)
        if room < 0:
            break
        pieces.append(piece)
    return f'"{"".join(pieces)}{_MORE}"'


def _json_char(char: str) -> str:
    if is_shown(char):
        return char
    if "\ud800" <= char <= "\udfff":
        return f"\\\\u{ord(char):04x}"
    utf16 = char.encode("utf-16-be").hex()
    return "".join(f"\\u{utf16[at : at + 4]}" for at in range(0, len(utf16), 4))


def text_value(value: object) -> str:
    """A value in the text format, quoted if necessary: at most ``MAX_FIELD`` characters and two quotes."""
    if type(value) is float or (type(value) is int and -(1 << 63) <= value < 1 << 63):
        return repr(value)  # plain, and by far the most frequent
    if not isinstance(value, str):
        return json_value(value) if isinstance(value, dict | list | tuple) else _plain_or_quoted(_repr(value))
    return _plain_or_quoted(redacted(value))


def _plain_or_quoted(text: str) -> str:
    if text.isprintable() and _PLAIN.fullmatch(text):
        return text
    shown = repr(text)
    if len(shown) > MAX_FIELD + 2:
        shown = f"{shown[: MAX_FIELD - len(_MORE)]}{_MORE}{shown[0]}"
    return shown


def text_escaped(text: str) -> str:
    """At most ``MAX_FIELD`` characters, unquoted; characters that :func:`is_shown` rejects are escaped as in a Python
    literal."""
    return _escaped(redacted(text), MAX_FIELD)


def _escaped(text: str, limit: int, keep: str = "") -> str:
    if text.isprintable():
        return text
    shown = "".join(char if is_shown(char) or char in keep else ascii(char)[1:-1] for char in text)
    return shown if len(shown) <= limit else shown[: limit - len(_MORE)] + _MORE


def is_shown(char: str) -> bool:
    """Whether a character is a letter, mark, sign or space of any script: no control or format character (such as
    bidirectional marks), no line separator, no surrogate, and no unassigned character."""
    return char.isprintable() or unicodedata.category(char) == "Zs"


def redacted(text: str) -> str:
    """The first ``MAX_FIELD`` characters of ``text``, without tokens. Does not scan the rest."""
    if len(text) > MAX_FIELD:
        text = _CUT_BEARER.sub(r"\1[token]", redact(text[: MAX_FIELD - len(_MORE)]))
        return text[: MAX_FIELD - len(_MORE)] + _MORE
    text = redact(text)
    # The replacement may be longer than the token.
    return text if len(text) <= MAX_FIELD else text[: MAX_FIELD - len(_MORE)] + _MORE


def _middle_dropped(text: str) -> str:
    """A traceback without tokens, truncated in the middle to ``MAX_TRACEBACK`` characters."""
    text = redact(text)
    if len(text) <= MAX_TRACEBACK:
        return text
    part = (MAX_TRACEBACK - 100) // 2
    return f"{text[:part]}\n... {len(text) - 2 * part} characters dropped ...\n{text[-part:]}"


def _fitting(parts: list[str], joined: Callable[[list[str]], str]) -> str:
    """The line, without the parts that exceed ``MAX_LINE_BYTES``; ``fields_dropped`` counts those."""
    line = joined(parts)
    if len(line) * 4 <= MAX_LINE_BYTES or len(line.encode("utf-8", "replace")) <= MAX_LINE_BYTES:
        return line
    kept, room = [], MAX_LINE_BYTES - 100
    for part in parts:
        size = len(part.encode("utf-8", "replace")) + 1
        if size <= room:
            room -= size
            kept.append(part)
    dropped = len(parts) - len(kept)
    return joined([*kept, f'"fields_dropped":{dropped}' if joined is _json_line else f"fields_dropped={dropped}"])


def _cut_to_bytes(line: str) -> str:
    data = line.encode("utf-8")
    return line if len(data) <= MAX_LINE_BYTES else data[:MAX_LINE_BYTES].decode("utf-8", "ignore")


def _json_line(members: list[str]) -> str:
    return f"{{{','.join(members)}}}"


def _timestamp(record: logging.LogRecord) -> str:
    return f"{datetime.fromtimestamp(record.created, UTC).isoformat(timespec='microseconds')[:-6]}Z"


def _event(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # the arguments don't fit the message: log both rather than nothing
        return f"{_repr(record.msg)} {_repr(record.args)}"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {
        key if key not in _OURS else f"{key}_": value for key, value in vars(record).items() if key not in _STANDARD
    }


def _exception(record: logging.LogRecord) -> str:
    text = record.exc_text or ""
    if record.exc_info and record.exc_info[0] is not None:
        text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
    if record.stack_info:
        text = f"{text}\n{record.stack_info}" if text else record.stack_info
    return text


def _repr(value: object) -> str:
    """``repr(value)``, truncated at ``MAX_FIELD``. Only the shown part of a long or deep container is formatted."""
    try:
        return redacted("".join(_not_much_longer(_repr_pieces(value, 0))))
    except Exception as error:  # a foreign __repr__, or an integer of 5,000 digits, may raise anything
        return f"<{type(value).__name__}: {type(error).__name__}>"


def _repr_pieces(value: object, depth: int) -> Iterator[str]:
    brackets = _BRACKETS.get(type(value))
    if isinstance(value, str | bytes) and type(value) in (str, bytes):
        yield repr(value[:MAX_FIELD])
    elif brackets is None or not value or not isinstance(value, Collection):
        yield repr(value)
    elif depth == _MAX_REPR_DEPTH:
        yield _MORE.join(brackets)
    else:
        yield brackets[0]
        for position, item in enumerate(value):
            if position:
                yield ", "
            yield from _repr_pieces(item, depth + 1)
            if isinstance(value, dict):
                yield ": "
                yield from _repr_pieces(value[item], depth + 1)
        yield f",{brackets[1]}" if isinstance(value, tuple) and len(value) == 1 else brackets[1]


def _painted(colour: str, text: str) -> str:
    return f"{colour}{text}{_RESET}"


def _unpainted(colour: str, text: str) -> str:
    return text
