"""The types that msgspec cannot express: durations, sizes, secrets, paths, URLs and more.

Each parses text as far as msgspec does not, and formats values. Types that several settings share are at the end.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from ..adapters import Library, Scheme
from ..plain_text import has_no_controls, strip_blanks
from ..rules.addresses import is_authority, is_host, is_web_url
from ..rules.durations import parse_duration_s
from ..rules.hosts import WILDCARD
from ..rules.origins import ANY, NULL, WEB, Network, read_origin, split_entry
from ..rules.sizes import format_size, parse_size_bytes
from .types import Kind, Number, WrongValue, decimal_text, shown

# Also matches URLs with wrong slashes: taken for paths, their passwords would appear in messages.
_WEB_SCHEME: Final = re.compile(r"\s*https?:", re.IGNORECASE)


class Duration(Number):
    """Seconds. A bare number is seconds."""

    metavar = "DURATION"
    takes = (int, float, str)
    refusal = "is out of range"

    def _describe(self) -> str:
        low, high = (self.show(float(bound or 0)) for bound in (self.bounds.ge, self.bounds.le))
        return f"a duration from {low} to {high}, such as 250ms, 2s, 1h30m, or plain seconds"

    def _parse(self, text: str) -> object:
        try:
            return parse_duration_s(text)
        except ValueError:
            raise WrongValue(f"{shown(text)} is not a duration") from None

    def show(self, value: float) -> str:
        # One day is 24h; two and more are days.
        for unit, unit_s, least_s in (("d", 86400, 172800), ("h", 3600, 3600), ("m", 60, 60)):
            if value >= least_s and value % unit_s == 0:
                return f"{value // unit_s:.0f}{unit}"
        if value and value < 1:
            # The rounded text is readable, but does not parse back to every value.
            milliseconds = f"{decimal_text(float(f'{value * 1000:.15g}'))}ms"
            if _is_duration_of(milliseconds, value):
                return milliseconds
        return f"{decimal_text(value)}s"


class Size(Kind[int]):
    """Bytes. A bare number is bytes."""

    metavar = "SIZE"
    takes = (int, str)
    refusal = "is out of range"

    def _describe(self) -> str:
        low, high = (format_size(int(bound or 0)) for bound in (self.bounds.ge, self.bounds.le))
        return f"a size from {low} to {high}, such as 512KiB, 1MiB, or plain bytes"

    def _parse(self, text: str) -> object:
        try:
            return parse_size_bytes(text)
        except ValueError:
            raise WrongValue(f"{shown(text)} is not a size") from None

    def show(self, value: int) -> str:
        return format_size(value)


# Secrets


class Secret(Kind[str]):
    """A secret, without any normalization."""

    metavar = "SECRET"
    allowed = "a secret, or @FILE to read it from a file"
    is_secret = True

    def _parse(self, text: str) -> object:
        if text and not text.strip():
            raise WrongValue("it is blank")
        return text


class Credential(Kind[tuple[str, str]]):
    """``key:secret``, split at the first colon."""

    metavar = "KEY:SECRET"
    allowed = "key:secret, or @FILE with one of them per line"
    is_secret = True

    def _parse(self, text: str) -> object:
        key, colon, secret = text.partition(":")
        if not colon or not key or not secret:
            raise WrongValue("it has no key, no colon or no secret")
        # They are sent in HTTP headers, which can carry neither; non-ASCII text is sent as UTF-8.
        if not text.isprintable() or text != text.strip():
            raise WrongValue("it begins or ends with whitespace, or has characters that an HTTP header cannot carry")
        return key, secret

    def show(self, value: tuple[str, str]) -> str:
        return ":".join(value)


# Paths


class FilePath(Kind[Path | None]):
    """A path. ``~`` is the user's home folder; an empty text is None."""

    metavar = "PATH"
    allowed = "a path"

    def _parse(self, text: str) -> object:
        return _path(text) if text else None

    def show(self, value: Path | None) -> str:
        return "" if value is None else _as_path(str(value))

    def relative_to(self, value: Path | None, folder: Path) -> Path | None:
        return None if value is None else folder / value

    def files(self, value: Path | None) -> Iterable[Path]:
        return () if value is None else (value,)


class FolderPath(FilePath):
    """The path of a folder, which is created if it does not exist."""

    def files(self, value: Path | None) -> Iterable[Path]:
        return ()


class KeySource(Kind[str]):
    """The location of a key: a path (as text, like URLs) or an http(s) URL."""

    metavar = "PATH|URL"
    allowed = "the path of a PEM or JWKS file, or the URL of a JWKS that begins with https:// or http://"

    def _parse(self, text: str) -> object:
        if "-----BEGIN" in text or text.lstrip().startswith("{"):
            raise WrongValue("it is a key, not the path of one")
        if _WEB_SCHEME.match(text) or "://" in text:
            if not is_web_url(text):
                raise WrongValue(f"{shown(text)} is not such a URL")
            return text
        if not text:
            raise WrongValue("it is empty")
        return str(_path(text))

    def show(self, value: str) -> str:
        return value if "://" in value else _as_path(value)

    def relative_to(self, value: str, folder: Path) -> str:
        return value if "://" in value else str(folder / value)

    def files(self, value: str) -> Iterable[Path]:
        return () if "://" in value else (Path(value),)


# Hosts and URLs


class Url(Kind[str]):
    """An http or https URL, or an empty text."""

    metavar = "URL"
    allowed = "a URL that begins with https:// or http://"

    def _parse(self, text: str) -> object:
        if text and not is_web_url(text):
            raise WrongValue(f"{shown(text)} is not such a URL")
        return text


class Host(Kind[str]):
    """An address or a host name to listen on. Brackets around an IPv6 address are removed."""

    metavar = "HOST"
    allowed = "an IP address or a host name, without a port"

    def _parse(self, text: str) -> object:
        host = strip_blanks(text)
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not is_host(bare) or (bare != host and ":" not in bare):
            raise WrongValue(f"{shown(text)} is not a host")
        return bare


class AdapterUrl(Kind[str]):
    """The URL of an adapter of one port, selected by its scheme. It is not checked whether the target exists.

    :param words: words that are accepted instead of a URL
    :param unknown: the error text for a URL with an unknown scheme
    :param colon: separates the URL from the error text
    """

    metavar = "URL"

    def __init__(self, *schemes: Scheme, unknown: str, words: Sequence[str] = (), colon: str = "") -> None:
        self.schemes, self.unknown, self.words, self.colon = schemes, unknown, words, colon
        super().__init__(str)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.allowed})"

    def _describe(self) -> str:
        return ", ".join([*self.words, *(scheme.form for scheme in self.schemes if scheme.form)])

    def _parse(self, text: str) -> object:
        url = strip_blanks(text)
        if url in self.words:
            return url
        scheme = self._scheme_of(url)
        try:
            if scheme is None:
                raise ValueError(self.unknown)
            if scheme.no_user and "@" in url.partition("?")[0]:
                raise WrongValue(f"it contains a user; {scheme.no_user}")
            return scheme.check(url)
        except WrongValue:
            raise
        except ValueError as error:
            raise WrongValue(f"{shown(text)}{self.colon} {error}") from None

    def relative_to(self, value: str, folder: Path) -> str:
        scheme = self._scheme_of(value)
        if scheme is None or has_no_controls(str(folder)):
            return value if scheme is None else scheme.rebase(value, folder)
        if scheme.rebase(value, Path("/")) != value:
            raise WrongValue("its folder has a control character in its name")
        return value

    def folder(self, value: str) -> str:
        scheme = self._scheme_of(value)
        return "" if scheme is None else scheme.folder(value)

    def library(self, value: str) -> Library | None:
        scheme = self._scheme_of(value)
        return None if scheme is None else scheme.library

    def _scheme_of(self, url: str) -> Scheme | None:
        name, separator, _ = url.partition("://")
        return next((scheme for scheme in self.schemes if separator and name.lower() in scheme.names), None)


class OriginEntry(Kind[str]):
    """An entry of a list of origins."""

    metavar = "ORIGIN"
    allowed = "*, null, https://app.example, https://*.example, app.example, https://app.example/path, file://"

    def _parse(self, text: str) -> object:
        entry = strip_blanks(text)
        if entry in (ANY, NULL):
            return entry
        scheme, rest = split_entry(entry)
        rest = rest.removeprefix("*.")
        origin = read_origin(f"{scheme}://{rest}" if scheme else rest)
        # The authority of other schemes need not be a host: app://.
        is_web_page = scheme.lower() in ("", *WEB)
        if origin is None or (is_web_page and not is_authority(rest.partition("/")[0])):
            raise WrongValue(f"{shown(text)} is not an origin")
        bare = entry.rstrip("/")
        return f"{bare}//" if bare.endswith(":") else bare  # file://


class HostEntry(Kind[str]):
    """An entry of a list of host names."""

    metavar = "HOST"
    allowed = "*, gateway.example, *.example.com, without a port; a name in another script as xn--..."

    def _parse(self, text: str) -> object:
        entry = strip_blanks(text)
        if entry != ANY and (":" in entry or not is_host(entry.removeprefix(WILDCARD))):
            raise WrongValue(f"{shown(text)} is not a host name")
        return entry


class NetworkEntry(Kind[Network]):
    """A network. A single IP address is a network with one address."""

    metavar = "NETWORK"
    allowed = "an IP address or a network, such as 10.0.0.7, 10.0.0.0/8, fd00::/8"

    def _judge(self, value: object, given: object) -> Network:
        # msgspec supports no union of two custom types.
        entry = strip_blanks(str(value))
        try:
            if not is_host(entry.partition("/")[0]):
                raise ValueError
            return ip_network(entry)
        except ValueError as error:
            hint = " (it has host bits set)" if "host bits" in str(error) else ""
            raise WrongValue(f"{shown(given)} is not a network{hint}") from None


# Types that several settings have

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Line = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z", description="text without control characters")]
Topic = Annotated[
    str,
    Meta(
        pattern=r"\A(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}\Z",
        title="TOPIC",
        description="a topic name: 1 to 249 of a-z A-Z 0-9 . _ -",
    ),
]
YEAR_S: Final = 366 * 86_400
Timeout = Annotated[float, Meta(ge=0.01, le=YEAR_S), Duration]
"""At least 10 ms, so that timers can implement it."""
Rate = Annotated[float, Meta(ge=0, le=sys.float_info.max, description="a number, 0 or more"), Number]
OptionalFile = Annotated[Path | None, FilePath]
SecretText = Annotated[str, Secret]
WebUrl = Annotated[str, Url]


def _is_duration_of(text: str, seconds: float) -> bool:
    try:
        return parse_duration_s(text) == seconds
    except ValueError:
        return False


def _as_path(text: str) -> str:
    """Format a path so that it is not parsed as a home folder (``~x``), a key (``{x``) or a URL (``http:x``)."""
    return f"./{text}" if re.match(r"~|\s*\{", text) or _WEB_SCHEME.match(text) else text


def _path(text: str) -> Path:
    if not has_no_controls(text):
        raise WrongValue(f"{shown(text)} is not a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise WrongValue(f"{shown(text)} names an unknown home folder") from None
