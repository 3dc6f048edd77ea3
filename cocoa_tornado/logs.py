"""Logging: key=value for people, JSON for machines, and never a token.

Code logs through the standard library with the data in ``extra``; Tornado's and kafka-python's own lines come out in
the same form.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog

LogFormat = Literal["text", "json"]

# Whatever looks like a JWT, and whatever stands in a query argument "token". The last line of defence: nothing of ours
# logs a URL, but a library may.
_TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+(?:\.[\w-]*)?|(?<=[?&]token=)[^&\s'\"]+")

# Keys that the standard library adds of its own (3.12 and later) and that tell a reader nothing.
_NOISE = ("taskName",)


def configure(log_format: LogFormat, level: str, stream: TextIO | None = None) -> None:
    """Route every logger of the process to one stream (standard error). Called once, by the command line.

    :param level: ``debug``, ``info``, ``warning`` or ``error``
    """
    stream = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(stream)
    handler.setFormatter(make_formatter(log_format, colors=stream.isatty()))
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
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False, separators=(",", ":"))
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=32, sort_keys=False)
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
        redact,
        renderer,
    ]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last)


def redact(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace whatever looks like a token in any text of the line."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _TOKEN.sub("[token]", value)
    return event


def _clean(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in _NOISE:
        event.pop(key, None)
    return event
