"""Logging: key=value for people, JSON for machines, and never a token.

Code logs through the standard library with the data in ``extra``; Tornado's and kafka-python's own lines come out in
the same form.
"""

from __future__ import annotations

import base64
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog

LogFormat = Literal["text", "json"]

# Words joined by dots: host names, versions, modules, topics, and tokens. In a rendered line one may follow the end of
# a colour, or the letter of an escape such as \n, without a boundary of words between. The quantifiers give nothing
# back and no match begins inside of a word, so that the time is linear in the line, whatever a stranger has put there.
_DOTTED = re.compile(r"(?:\x1b\[[\d;]*+m|\\[nrt]|(?<![A-Za-z0-9_-]))[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)++")
_JOINT = re.compile(r"\x1b\[[\d;]*m|\\[nrt]|\.")

# How each part of a token but the last begins, once it is decoded: a JSON object and the name of its first member.
_OBJECT = re.compile(rb'[ \t\r\n]*+\{[ \t\r\n]*+"[^"\x00-\x1f]*+"')
_OBJECT_IN_BASE64 = "eyJ"  # {" and a letter
_FIRST_IN_BASE64 = "eCDI"  # { and the blanks of JSON
_GLANCE = 96  # Characters that are decoded where a token may begin in the middle of a word.

# What stands in a query argument "token", or after the word Bearer and is too long for a word.
_OPAQUE = re.compile(r"(?<=[?&]token=)[^&\s'\"]+|(?<=[Bb]earer )[^\s'\",]{16,}")

LINES_A_MINUTE = 10

# Keys that the standard library (3.12 and later), or another handler, has added and that tell a reader nothing.
_NOISE = ("taskName", "message", "asctime")


def configure(log_format: LogFormat, level: str, stream: TextIO | None = None) -> None:
    """Route every logger of the process to one stream (standard error). Called once, by the command line.

    :param level: ``debug``, ``info``, ``warning`` or ``error``
    """
    stream = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(stream)
    handler.setFormatter(make_formatter(log_format, colors=stream.isatty()))
    handler.addFilter(StrangersLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)


def set_level(level: str) -> None:
    root = logging.getLogger()
    root.setLevel(level.upper())
    # asyncio's debug lines and Tornado's access log (ours takes its place) are noise at any level.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("tornado.access").setLevel(logging.ERROR)


def make_formatter(log_format: LogFormat, colors: bool = False) -> logging.Formatter:
    """A formatter for any record; what is in ``extra`` becomes keys of the line."""
    rendering: list[structlog.typing.Processor]
    if log_format == "json":
        rendering = [structlog.processors.JSONRenderer(ensure_ascii=False, separators=(",", ":"))]
    else:
        console = structlog.dev.ConsoleRenderer(
            colors=colors,
            pad_event_to=32,
            sort_keys=False,
            # Others draw frames around the local variables, and those may be anything.
            exception_formatter=structlog.dev.plain_traceback,
        )
        rendering = [_escape, console]
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.ExtraAdder(),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        _clean,
        structlog.processors.format_exc_info,
        *rendering,
        _redact_line,
    ]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last)


def redact(text: str) -> str:
    """The text, with ``[token]`` in place of whatever looks like one.

    That is: any JWT or the beginning of one, however its JSON is spelt; the query argument ``token``; what follows the
    word Bearer. The last line of defence: nothing of ours logs a URL or a header, but a library may.
    """
    return _OPAQUE.sub("[token]", _DOTTED.sub(_without_token, text))


def _without_token(dotted: re.Match[str]) -> str:
    text = dotted[0]
    start = 0
    for joint in _JOINT.finditer(text):
        word = text[start : joint.start()]
        begin = _token_in(word)
        if begin is not None:
            return f"{text[: start + begin]}[token]"
        start = joint.end()
    return text


def _token_in(word: str) -> int | None:
    """Where in a word, which a dot follows, a part of a token begins."""
    if word and word[0] in _FIRST_IN_BASE64 and _is_object(word):
        return 0
    begin = word.find(_OBJECT_IN_BASE64, 1)
    while begin > 0:
        if _is_object(word[begin : begin + _GLANCE]):
            return begin
        begin = word.find(_OBJECT_IN_BASE64, begin + 1)
    return None


def _is_object(word: str) -> bool:
    # Without the characters that make no whole group: a header's first member is not that near its end.
    return _OBJECT.match(base64.urlsafe_b64decode(word[: len(word) & ~3])) is not None


class StrangersLines(logging.Filter):
    """What Tornado says of what strangers send: without the data, and at most ten lines a minute of a kind.

    Anybody may speak plain HTTP to a TLS port, or half of a header, as often as he likes. The first line of the next
    minute says how many were left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[str, _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name != "tornado.general" or record.levelno >= logging.ERROR:
            return True
        text, _, _ = record.getMessage().partition("\n")
        if text.startswith("Malformed HTTP message"):
            # It goes on with the header in question, which may be the one that held the token.
            record.msg, record.args = re.split(r"['\"]", text, maxsplit=1)[0].rstrip(" :"), None
        kind = self._kinds.setdefault(text[:9], _Kind(record.created))
        return kind.has_room(record)


class _Kind:
    """Lines that begin alike, in this minute."""

    __slots__ = ("_left_out", "_lines", "_since")

    def __init__(self, since: float) -> None:
        self._since, self._lines, self._left_out = since, 0, 0

    def has_room(self, record: logging.LogRecord) -> bool:
        if record.created - self._since >= 60:
            self._since, self._lines = record.created, 0
        self._lines += 1
        if self._lines > LINES_A_MINUTE:
            self._left_out += 1
            return False
        if self._left_out:
            record.left_out, self._left_out = self._left_out, 0
        return True


def _redact_line(logger: object, method: str, line: Any) -> str:
    return redact(str(line))


def _escape(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A terminal obeys control characters; the renderer quotes what has blanks and line ends, and nothing else."""
    for key, value in event.items():
        if key != "exception" and isinstance(value, str) and not value.isprintable():
            event[key] = "".join(
                char if char.isprintable() or char in "\t\r\n" else ascii(char)[1:-1] for char in value
            )
    return event


def _clean(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in _NOISE:
        event.pop(key, None)
    return event
