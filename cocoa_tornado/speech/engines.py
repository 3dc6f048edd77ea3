"""Which speech engine a URL names.

Reading a URL is pure and imports nothing; ``loading.py`` imports the engines.

::

    pocketsphinx://                                  the model that comes with the package
    pocketsphinx:///folder/of/model?dict=..&lm=..    another acoustic model; its dictionary and language model
    whisper://base                                   a model by name: fetched once, kept in the library's own cache
    whisper:///absolute/folder  whisper://./folder   a model on disk
    google://?project=..&location=..&model=..        Google Cloud Speech, version 2
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote

from ..plain_text import has_no_controls, quoted

EngineKind = Literal["pocketsphinx", "whisper", "google"]

OPTIONS: Final[Mapping[EngineKind, frozenset[str]]] = {
    "pocketsphinx": frozenset({"dict", "lm"}),
    "whisper": frozenset({"beam", "compute_type"}),
    "google": frozenset({"project", "location", "language", "model", "recognizer", "endpoint"}),
}
"""What may stand behind the question mark of each engine's URL."""

_MODULES: Final[Mapping[EngineKind, tuple[str, ...]]] = {
    # PyAV decodes for every engine; pocketsphinx also brings the voice activity detector for audio over WebSocket.
    "pocketsphinx": ("pocketsphinx", "av"),
    "whisper": ("faster_whisper", "pocketsphinx", "av"),
    "google": ("google.cloud.speech_v2", "pocketsphinx", "av"),
}


MIB: Final = 1024 * 1024

WORKER_BYTES: Final = 192 * MIB
"""Memory of a worker with pocketsphinx at work, 140 MiB, or with Google, and some more for the decoders."""

WHISPER_MODEL_BYTES: Final[Mapping[str, int]] = {
    "distil-large": 1520 * MIB,
    "distil-medium": 790 * MIB,
    "turbo": 1620 * MIB,
    "large": 3100 * MIB,
    "medium": 1530 * MIB,
    "small": 485 * MIB,
    "base": 145 * MIB,
    "tiny": 75 * MIB,
}
"""Size of ``model.bin`` by a word of the model's name; the first that fits counts. Other names count as ``medium``."""


@dataclass(frozen=True, slots=True)
class EngineUrl:
    """An engine and what its URL says about it.

    :ivar location: what stands between ``://`` and ``?``, unquoted: a model's name or folder; '' for the engine's own
    :ivar options: what stands behind ``?``; only names from :data:`OPTIONS`
    """

    kind: EngineKind
    location: str
    options: Mapping[str, str]

    @property
    def extra(self) -> str:
        """The extra of this package that brings the engine."""
        return "speech" if self.kind == "pocketsphinx" else self.kind


def engine_of(url: str) -> EngineUrl:
    """Read a URL; see the top of this module.

    >>> engine_of("whisper://base").location
    'base'

    :raises ValueError: it is no such URL; the text follows on the URL in a sentence
    """
    kind = _kind(url)
    if not url.isprintable() or "#" in url:
        raise ValueError("holds a character that no engine's URL has")
    place, _, query = url.partition("://")[2].partition("?")
    location = unquote(place)
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ValueError("has options that are not of the form name=value") from None
    options = dict(pairs)
    if not all(map(has_no_controls, (location, *options.values()))):
        raise ValueError("holds an escape that stands for a control character")
    if len(options) < len(pairs):
        raise ValueError("has an option twice")
    unknown = sorted(options.keys() - OPTIONS[kind])
    if unknown:
        raise ValueError(f"has an option {quoted(unknown[0])}, which is not one of {', '.join(sorted(OPTIONS[kind]))}")
    _check_location(kind, location)
    return EngineUrl(kind, location, options)


def missing_module(engine: EngineUrl) -> str | None:
    """The first of the engine's Python modules that is not installed here; None if all are. Imports none of them
    (but the packages above a dotted name)."""
    for name in _MODULES[engine.kind]:
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            return name
    return None


def worker_bytes(engine: EngineUrl) -> int:
    """Memory of one worker at work, roughly, and rather too much than too little.

    Whisper's ``base``, with a file of 145 MiB, takes 250 MiB idle and 500 MiB at work.
    """
    if engine.kind != "whisper":
        return WORKER_BYTES
    try:
        model_bytes = os.stat(os.path.join(engine.location, "model.bin")).st_size
    except OSError:
        name = engine.location.rpartition("/")[2].lower()
        name = next((word for word in WHISPER_MODEL_BYTES if word in name), "medium")
        model_bytes = WHISPER_MODEL_BYTES[name]
    return 2 * model_bytes + 256 * MIB


def _kind(url: str) -> EngineKind:
    scheme, separator, _ = url.partition("://")
    for kind in OPTIONS:
        if separator and scheme.lower() == kind:
            return kind
    raise ValueError("is not a speech engine of a kind that is known")


def _check_location(kind: EngineKind, location: str) -> None:
    if kind == "whisper" and not location:
        raise ValueError("names no model: whisper://base, or whisper:///a/folder")
    if kind == "google" and location:
        raise ValueError("has a host or a path in it; google:// takes options only: google://?project=...")
    if kind == "pocketsphinx" and location and not location.startswith("/"):
        raise ValueError("names no absolute folder: pocketsphinx://, or pocketsphinx:///a/folder")
