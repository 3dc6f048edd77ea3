"""Speech engines by URL.

Parsing a URL is pure and imports nothing; ``loading.py`` imports the engines.

::

    pocketsphinx://                                  the model that comes with the package
    pocketsphinx:///folder/of/model?dict=..&lm=..    another acoustic model; its dictionary and language model
    whisper://base                                   a model by name: fetched once, kept in the library's own cache
    whisper:///absolute/folder  whisper://./folder   a model on disk
    google://?project=..&location=..&model=..        Google Cloud Speech, version 2
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import parse_qsl, quote, unquote

from ..adapters import Library, Scheme
from ..plain_text import has_no_controls, quoted

EngineKind = Literal["pocketsphinx", "whisper", "google"]


UNKNOWN_ENGINE: Final = "is not a supported speech engine"
MIB: Final = 1024 * 1024

WORKER_BYTES: Final = 192 * MIB
"""Memory of a busy worker with pocketsphinx (140 MiB) or Google, plus some for the decoders."""

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
"""Size of ``model.bin`` by a part of the model's name; the first match counts. Other names count as ``medium``."""


@dataclass(frozen=True, slots=True)
class EngineUrl:
    """An engine, and the parameters in its URL.

    :ivar location: the unquoted part between ``://`` and ``?``: a model's name or folder; '' for the engine's default
    :ivar options: the part after ``?``; only names that the engine knows
    """

    kind: EngineKind
    location: str
    options: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """What is known of an engine before its library is loaded.

    :ivar form: the form of its URL
    :ivar options: the names allowed after the question mark
    :ivar location_problem: what is wrong with a location, to complete a sentence that begins with the URL; "" if valid
    """

    form: str
    options: frozenset[str]
    library: Library
    location_problem: Callable[[str], str]


# PyAV decodes for every engine; pocketsphinx also provides the voice activity detector for audio over WebSocket.
ENGINES: Final[Mapping[EngineKind, Engine]] = {
    "pocketsphinx": Engine(
        form="pocketsphinx://",
        options=frozenset({"dict", "lm"}),
        library=Library(needed_by="pocketsphinx://", modules=("pocketsphinx", "av"), extra="speech", instead="none://"),
        location_problem=lambda location: (
            "names no absolute folder: pocketsphinx://, or pocketsphinx:///a/folder"
            if location and not location.startswith("/")
            else ""
        ),
    ),
    "whisper": Engine(
        form="whisper://<model name or folder>",
        options=frozenset({"beam", "compute_type"}),
        library=Library(
            needed_by="whisper://", modules=("faster_whisper", "pocketsphinx", "av"), extra="whisper", instead="none://"
        ),
        location_problem=lambda location: "" if location else "names no model: whisper://base, or whisper:///a/folder",
    ),
    "google": Engine(
        form="google://",
        options=frozenset({"project", "location", "language", "model", "recognizer", "endpoint"}),
        library=Library(
            needed_by="google://",
            modules=("google.cloud.speech_v2", "pocketsphinx", "av"),
            extra="google",
            instead="none://",
        ),
        location_problem=lambda location: (
            "has a host or a path in it; google:// takes options only: google://?project=..." if location else ""
        ),
    ),
}


def engine_of(url: str) -> EngineUrl:
    """Parse an engine's URL; see the top of this module.

    >>> engine_of("whisper://base").location
    'base'

    :raises ValueError: not such a URL; the message completes a sentence that begins with the URL
    """
    kind = _kind(url)
    if not url.isprintable() or "#" in url:
        raise ValueError("contains a character that is invalid in URLs")
    place, _, query = url.partition("://")[2].partition("?")
    location = unquote(place)
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ValueError("has options that are not of the form name=value") from None
    options = dict(pairs)
    if not all(map(has_no_controls, (location, *options.values()))):
        raise ValueError("contains an escaped control character")
    if len(options) < len(pairs):
        raise ValueError("repeats an option")
    engine = ENGINES[kind]
    unknown = sorted(options.keys() - engine.options)
    if unknown:
        raise ValueError(f"has an option {quoted(unknown[0])}, which is not one of {', '.join(sorted(engine.options))}")
    problem = engine.location_problem(location)
    if problem:
        raise ValueError(problem)
    return EngineUrl(kind, location, options)


def missing_module(engine: EngineUrl) -> str | None:
    """The first of the engine's Python modules that is not installed; None if all are."""
    return ENGINES[engine.kind].library.missing()


def worker_bytes(engine: EngineUrl) -> int:
    """A rough estimate of a busy worker's memory, rather high than low.

    Whisper's ``base``, a file of 145 MiB, takes 250 MiB idle and 500 MiB busy.
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
    for kind in ENGINES:
        if separator and scheme.lower() == kind:
            return kind
    raise ValueError(UNKNOWN_ENGINE)


def _check(url: str) -> str:
    engine_of(url)
    return url


def _folder(url: str) -> str:
    location = engine_of(url).location
    return location if location.startswith(("/", "./", "../")) else ""


def _rebase(url: str, folder: Path) -> str:
    scheme, _, rest = url.partition("://")
    location, mark, options = rest.partition("?")
    if not unquote(location).startswith(("./", "../")) or folder == Path():
        return url
    return f"{scheme}://{quote(str((folder / unquote(location)).absolute()))}{mark}{options}"


SCHEMES: Final = tuple(
    Scheme(
        names=(kind,),
        form=engine.form,
        check=_check,
        library=engine.library,
        no_user="an engine's credentials never stand in its URL",
        folder=_folder,
        rebase=_rebase,
    )
    for kind, engine in ENGINES.items()
)
"""Options of all engines. Only whisper's URL can contain a relative folder."""
