"""The kinds of value a setting can have: how each is read from text and from TOML, and how it is written down.

What is read here is judged by itself: no file is opened, no name is resolved. Where a value came from, and whether
two settings go together, is decided elsewhere (``settings_sources``, ``settings_checks``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path
from typing import Final, Generic, TypeVar
from urllib.parse import quote, unquote

from .plain_text import MAX_QUOTED, has_no_controls, is_encodable, one_line, quoted, strip_blanks
from .rules import mailbox_urls
from .rules.addresses import is_authority, is_host, is_web_url, kafka_servers, masked
from .rules.durations import parse_duration_s
from .rules.origins import ANY, NULL, WEB, Network, read_origin, split_entry
from .rules.sizes import format_size, parse_size_bytes
from .speech.engines import engine_of

T = TypeVar("T")
V = TypeVar("V")
C = TypeVar("C", bound=str)

# More digits than this are shown in hexadecimal: int() and str() refuse decimal numbers of thousands of digits, which
# TOML's 0x can make all the same.
_MAX_DECIMAL_BITS: Final = 192
# Also of a URL whose slashes are wrong. It is not taken for a path, which messages show as it is.
_WEB_SCHEME: Final = re.compile(r"\s*https?:", re.IGNORECASE)
_TYPE_WORDS: Final = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "an array",
    dict: "a table",
    type(None): "null",
}


class WrongValue(ValueError):
    """A value is not of its kind.

    ``str()`` says what is wrong in one short and printable line; what is allowed stands in the kind.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(one_line(problem))


def type_word(value: object) -> str:
    """What TOML calls the type of ``value``: ``an integer``, ``a table``."""
    return _TYPE_WORDS.get(type(value), "a date or a time")


def wrong_type(value: object, *, secret: bool = False) -> WrongValue:
    """The error for a value of a type that its kind does not take; shows it only where it is a plain, public one."""
    plain = isinstance(value, bool | int | float | str) and not secret
    return WrongValue(f"{shown(value) if plain else 'it'} is {type_word(value)}")


def shown(value: object) -> str:
    """``value`` in a message: one short line, without the password of a URL."""
    if isinstance(value, str):
        return quoted(masked(value))
    if isinstance(value, int) and value.bit_length() > _MAX_DECIMAL_BITS:
        return one_line(f"{value:#x}", MAX_QUOTED)
    return one_line(str(value).lower(), MAX_QUOTED)


def decimal_text(value: float) -> str:
    """``value``, which is finite, in plain digits without an exponent; ``float()`` reads exactly it back.

    >>> decimal_text(1e-7), decimal_text(30.0), decimal_text(1e18)
    ('0.0000001', '30', '1000000000000000000')
    """
    return f"{Decimal(repr(value)):f}".removesuffix(".0")


class Kind(Generic[T]):
    """A kind of value. Subclasses give at least :meth:`_parse`.

    Any text, and any value of a type that TOML or JSON has, is a value of the kind or a :class:`WrongValue`; nothing
    else is raised. A value that was read is one that can be written: :meth:`show` gives the text of it, which
    :meth:`from_text` reads back as an equal value.

    :ivar metavar: the word for a value in a command's help
    """

    metavar: str = "TEXT"

    @property
    def allowed(self) -> str:
        """What is allowed, for a message and the reference."""
        return "text"

    def from_text(self, text: str) -> T:
        """Read an option's or an environment variable's text. Raises :class:`WrongValue`."""
        if not is_encodable(text):
            raise WrongValue("it is not UTF-8")
        return self._parse(text)

    def _parse(self, text: str) -> T:
        """Read text that is known to be UTF-8. Raises :class:`WrongValue` and nothing else."""
        raise WrongValue(f"{shown(text)} is not allowed")

    def from_value(self, value: object) -> T:
        """Read a typed value, such as TOML has. Raises :class:`WrongValue`."""
        if not isinstance(value, str):
            raise wrong_type(value)
        return self.from_text(value)

    def show(self, value: T) -> str:
        """``value`` as :meth:`from_text` would read it back."""
        return str(value)

    def relative_to(self, value: T, folder: Path) -> T:
        """``value`` with the relative path in it, if it is one, taken from ``folder``. Raises :class:`WrongValue`."""
        return value


@dataclass(frozen=True)
class Text(Kind[str]):
    """One line of text without control characters; ``pattern`` matches all of it."""

    allowed: str = "text without control characters"
    metavar: str = "TEXT"
    pattern: str = ".*"

    def _parse(self, text: str) -> str:
        if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in text) or not re.fullmatch(self.pattern, text):
            raise WrongValue(f"{shown(text)} is not allowed")
        return text


TOPIC: Final = Text("a topic name: 1 to 249 of a-z A-Z 0-9 . _ -", "TOPIC", r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")


@dataclass(frozen=True)
class Whole(Kind[int]):
    """A whole number from ``low`` to ``high``; ``special`` are allowed besides."""

    low: int
    high: int
    special: int | None = None
    metavar: str = "N"

    @property
    def allowed(self) -> str:
        extra = "" if self.special is None else f", or {self.special}"
        return f"a whole number from {self.low} to {self.high}{extra}"

    def _parse(self, text: str) -> int:
        digits = strip_blanks(text)
        # 18 digits are more than any setting takes, and few enough for int().
        if not re.fullmatch(r"-?[0-9]{1,18}", digits):
            raise WrongValue(f"{shown(text)} is not a whole number")
        return self._bounded(int(digits))

    def from_value(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(value)
        return self._bounded(value)

    def _bounded(self, number: int) -> int:
        if number != self.special and not self.low <= number <= self.high:
            raise WrongValue(f"{shown(number)} is out of range")
        return number


@dataclass(frozen=True)
class Number(Kind[float]):
    """A number, not negative and finite."""

    metavar: str = "NUMBER"
    allowed: str = "a number, 0 or more"

    def _parse(self, text: str) -> float:
        digits = strip_blanks(text)
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", digits):
            raise WrongValue(f"{shown(text)} is not such a number")
        return self._bounded(float(digits), text)

    def from_value(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(value)
        try:
            return self._bounded(float(value), value)
        except OverflowError:
            raise WrongValue(f"{shown(value)} is too large") from None

    def _bounded(self, number: float, given: object) -> float:
        if not 0 <= number < math.inf:
            raise WrongValue(f"{shown(given)} is not such a number")
        # The zero that is added makes 0.0 of -0.0, which would be written with its sign.
        return number + 0.0

    def show(self, value: float) -> str:
        return decimal_text(value)


@dataclass(frozen=True)
class Duration(Kind[float]):
    """Seconds, as a float. A bare number is seconds."""

    low_s: float = 0.0
    high_s: float = 366 * 86400.0
    metavar: str = "DURATION"

    @property
    def allowed(self) -> str:
        bounds = f"{self.show(self.low_s)} to {self.show(self.high_s)}"
        return f"a duration from {bounds}, such as 250ms, 2s, 1h30m, or plain seconds"

    def _parse(self, text: str) -> float:
        try:
            seconds = parse_duration_s(text)
        except ValueError:
            raise WrongValue(f"{shown(text)} is not a duration") from None
        return self._bounded(seconds, text)

    def from_value(self, value: object) -> float:
        if isinstance(value, str):
            return self.from_text(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(value)
        # Compared before it is converted: an integer of TOML may be larger than any float.
        return float(self._bounded(value, value)) + 0.0

    def _bounded(self, seconds: float, given: object) -> float:
        # Not a number is in no range.
        if not self.low_s <= seconds <= self.high_s:
            raise WrongValue(f"{shown(given)} is out of range")
        return seconds

    def show(self, value: float) -> str:
        # A day is more readily read as 24h, several of them as days.
        for unit, unit_s, least_s in (("d", 86400, 172800), ("h", 3600, 3600), ("m", 60, 60)):
            if value >= least_s and value % unit_s == 0:
                return f"{value // unit_s:.0f}{unit}"
        if value and value < 1:
            # Rounded to what a person would write, which not every value is read back from.
            milliseconds = f"{decimal_text(float(f'{value * 1000:.15g}'))}ms"
            if _is_duration_of(milliseconds, value):
                return milliseconds
        return f"{decimal_text(value)}s"


@dataclass(frozen=True)
class Size(Kind[int]):
    """Bytes. A bare number is bytes."""

    low: int = 1
    high: int = 2**31
    metavar: str = "SIZE"

    @property
    def allowed(self) -> str:
        return f"a size from {format_size(self.low)} to {format_size(self.high)}, such as 512KiB, 1MiB, or plain bytes"

    def _parse(self, text: str) -> int:
        try:
            size = parse_size_bytes(text)
        except ValueError:
            raise WrongValue(f"{shown(text)} is not a size") from None
        return self._bounded(size, text)

    def from_value(self, value: object) -> int:
        if isinstance(value, str):
            return self.from_text(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(value)
        return self._bounded(value, value)

    def _bounded(self, size: int, given: object) -> int:
        if not self.low <= size <= self.high:
            raise WrongValue(f"{shown(given)} is out of range")
        return size

    def show(self, value: int) -> str:
        return format_size(value)


@dataclass(frozen=True)
class Flag(Kind[bool]):
    """Yes or no."""

    metavar: str = ""
    allowed: str = "true, false, yes, no, on, off, 1, 0"

    def _parse(self, text: str) -> bool:
        word = strip_blanks(text).lower()
        if word in ("true", "yes", "on", "1"):
            return True
        if word in ("false", "no", "off", "0"):
            return False
        raise WrongValue(f"{shown(text)} is neither true nor false")

    def from_value(self, value: object) -> bool:
        return value if isinstance(value, bool) else super().from_value(value)

    def show(self, value: bool) -> str:
        return "true" if value else "false"


class Choice(Kind[C]):
    """One of a few words; upper and lower case are the same."""

    allowed: str = ""

    def __init__(self, *words: C) -> None:
        self.words = words
        self.allowed = ", ".join(word or "nothing" for word in words)
        self.metavar = f"[{'|'.join(filter(None, words))}]"

    def _parse(self, text: str) -> C:
        for word in self.words:
            if word.lower() == strip_blanks(text).lower():
                return word
        raise WrongValue(f"{shown(text)} is not one of them")


@dataclass(frozen=True)
class Secret(Kind[str]):
    """A secret, kept to the byte. No message shows it."""

    metavar: str = "SECRET"
    allowed: str = "a secret, or @FILE to read it from a file"

    def _parse(self, text: str) -> str:
        if text and not text.strip():
            raise WrongValue("it is blank")
        return text

    def from_value(self, value: object) -> str:
        if not isinstance(value, str):
            raise wrong_type(value, secret=True)
        return self.from_text(value)


@dataclass(frozen=True)
class Credential(Kind[tuple[str, str]]):
    """``key:secret``, cut at the first colon. No message shows it."""

    metavar: str = "KEY:SECRET"
    allowed: str = "key:secret, or @FILE with one of them per line"

    def _parse(self, text: str) -> tuple[str, str]:
        key, colon, secret = text.partition(":")
        if not colon or not key or not secret:
            raise WrongValue("it has no key, no colon or no secret")
        # They arrive in HTTP headers, which carry neither; text beyond ASCII is sent as UTF-8.
        if not text.isprintable() or text != text.strip():
            raise WrongValue("it has blanks at its ends, or characters that an HTTP header cannot carry")
        return key, secret

    def from_value(self, value: object) -> tuple[str, str]:
        if not isinstance(value, str):
            raise wrong_type(value, secret=True)
        return self.from_text(value)

    def show(self, value: tuple[str, str]) -> str:
        return ":".join(value)


@dataclass(frozen=True)
class FilePath(Kind[Path | None]):
    """A path; ``~`` is the user's home folder, nothing is None."""

    metavar: str = "PATH"
    allowed: str = "a path"

    def _parse(self, text: str) -> Path | None:
        return _path(text) if text else None

    def show(self, value: Path | None) -> str:
        return "" if value is None else _as_path(str(value))

    def relative_to(self, value: Path | None, folder: Path) -> Path | None:
        return None if value is None else folder / value


@dataclass(frozen=True)
class Url(Kind[str]):
    """An http or https URL, or nothing."""

    metavar: str = "URL"
    allowed: str = "a URL that begins with https:// or http://"

    def _parse(self, text: str) -> str:
        if text and not is_web_url(text):
            raise WrongValue(f"{shown(text)} is not such a URL")
        return text


@dataclass(frozen=True)
class KeySource(Kind[str]):
    """Where a key is: a path (as text, so that it can stand beside URLs) or an http(s) URL."""

    metavar: str = "PATH|URL"
    allowed: str = "the path of a PEM or JWKS file, or the URL of a JWKS that begins with https:// or http://"

    def _parse(self, text: str) -> str:
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


@dataclass(frozen=True)
class Host(Kind[str]):
    """An address or a host name to listen on. An IPv6 address may stand in brackets, which are dropped."""

    metavar: str = "HOST"
    allowed: str = "an IP address or a host name, without a port"

    def _parse(self, text: str) -> str:
        host = strip_blanks(text)
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not is_host(bare) or (bare != host and ":" not in bare):
            raise WrongValue(f"{shown(text)} is not a host")
        return bare


@dataclass(frozen=True)
class BrokerUrl(Kind[str]):
    """``memory://`` or ``kafka://host:port,...``, as it was given."""

    metavar: str = "URL"
    allowed: str = "memory://, kafka://host:port[,host:port...]"

    def _parse(self, text: str) -> str:
        url = strip_blanks(text)
        if "@" in url:
            raise WrongValue("it holds a user; credentials belong to kafka_sasl_username and kafka_sasl_password")
        if url != "memory://":
            try:
                kafka_servers(url)
            except ValueError as error:
                raise WrongValue(f"{shown(text)} {error}") from None
        return url


@dataclass(frozen=True)
class Part(Kind[str]):
    """A part that has only its embedded form in this version; the schemes of later forms are known by name."""

    embedded: str
    later: Sequence[str]
    metavar: str = "URL"

    @property
    def allowed(self) -> str:
        return self.embedded

    def _parse(self, text: str) -> str:
        url = strip_blanks(text)
        if url == self.embedded:
            return url
        if url.partition("://")[0].lower() in self.later and "://" in url:
            raise WrongValue(f"{shown(url)} is not available in this version")
        raise WrongValue(f"{shown(text)} is unknown")


@dataclass(frozen=True)
class MailboxUrl(Kind[str]):
    """A mailbox, as it was given. Whether it is there, and its library installed, is not looked at."""

    metavar: str = "URL"
    allowed: str = mailbox_urls.ALLOWED

    def _parse(self, text: str) -> str:
        try:
            return mailbox_urls.check_mailbox_url(text)
        except ValueError as error:
            raise WrongValue(f"{shown(text)}: {error}") from None

    def relative_to(self, value: str, folder: Path) -> str:
        if not value.startswith("sqlite:"):
            return value
        return f"sqlite:///{_quoted_path(folder / mailbox_urls.sqlite_path(value))}"


@dataclass(frozen=True)
class SpeechUrl(Kind[str]):
    """``auto``, ``none://``, or a speech engine, as it was given. Whether that is installed is not looked at."""

    metavar: str = "URL"
    allowed: str = "auto, none://, pocketsphinx://, whisper://<model name or folder>, google://"

    def _parse(self, text: str) -> str:
        url = strip_blanks(text)
        if url in ("auto", "none://"):
            return url
        if "@" in url.partition("?")[0]:
            raise WrongValue("it holds a user; an engine's credentials never stand in its URL")
        try:
            engine_of(url)
        except ValueError as error:
            raise WrongValue(f"{shown(text)} {error}") from None
        return url

    def relative_to(self, value: str, folder: Path) -> str:
        scheme, _, rest = value.partition("://")
        location, mark, options = rest.partition("?")
        if scheme.lower() != "whisper" or not unquote(location).startswith(("./", "../")) or folder == Path():
            return value
        return f"{scheme}://{_quoted_path((folder / unquote(location)).absolute())}{mark}{options}"


@dataclass(frozen=True)
class OriginEntry(Kind[str]):
    """What may stand in a list of origins."""

    metavar: str = "ORIGIN"
    allowed: str = "*, null, https://app.example, https://*.example, app.example, https://app.example/path, file://"

    def _parse(self, text: str) -> str:
        entry = strip_blanks(text)
        if entry in (ANY, NULL):
            return entry
        scheme, rest = split_entry(entry)
        rest = rest.removeprefix("*.")
        origin = read_origin(f"{scheme}://{rest}" if scheme else rest)
        # What other schemes call a host need not be one: app://.
        is_web_page = scheme.lower() in ("", *WEB)
        if origin is None or (is_web_page and not is_authority(rest.partition("/")[0])):
            raise WrongValue(f"{shown(text)} is not an origin")
        bare = entry.rstrip("/")
        return f"{bare}//" if bare.endswith(":") else bare  # file://


@dataclass(frozen=True)
class NetworkEntry(Kind[Network]):
    """An IP address, which is a network of one, or a network."""

    metavar: str = "NETWORK"
    allowed: str = "an IP address or a network, such as 10.0.0.7, 10.0.0.0/8, fd00::/8"

    def _parse(self, text: str) -> Network:
        entry = strip_blanks(text)
        try:
            if not is_host(entry.partition("/")[0]):
                raise ValueError
            return ip_network(entry)
        except ValueError as error:
            hint = " (it has host bits set)" if "host bits" in str(error) else ""
            raise WrongValue(f"{shown(text)} is not a network{hint}") from None


class ListOf(Kind[tuple[T, ...]]):
    """Several values of one kind, in order. A text is one item; what :meth:`show` writes for several is for people."""

    allowed: str = ""

    def __init__(self, item: Kind[T]) -> None:
        self.item = item
        self.metavar, self.allowed = item.metavar, item.allowed

    def _parse(self, text: str) -> tuple[T, ...]:
        return self.from_texts([text])

    def from_value(self, value: object) -> tuple[T, ...]:
        """``value`` is a list of items, each of them text."""
        if not isinstance(value, list):
            raise WrongValue(f"it is {type_word(value)}, not an array")
        return tuple(self.item.from_value(_not_empty(item)) for item in value)

    def from_texts(self, texts: Sequence[str]) -> tuple[T, ...]:
        """Read each of ``texts`` as one item."""
        return tuple(self.item.from_text(_not_empty(text)) for text in texts)

    def show(self, value: tuple[T, ...]) -> str:
        return ",".join(self.item.show(item) for item in value)

    def relative_to(self, value: tuple[T, ...], folder: Path) -> tuple[T, ...]:
        return tuple(self.item.relative_to(item, folder) for item in value)


def _not_empty(item: V) -> V:
    if item == "":
        raise WrongValue("one of its items is empty")
    return item


def _is_duration_of(text: str, seconds: float) -> bool:
    try:
        return parse_duration_s(text) == seconds
    except ValueError:
        return False


def _as_path(text: str) -> str:
    """A path such that it is read as one, and not as a home folder (``~x``), a key (``{x``) or a URL (``http:x``)."""
    return f"./{text}" if re.match(r"~|\s*\{", text) or _WEB_SCHEME.match(text) else text


def _quoted_path(path: Path) -> str:
    """A path as it stands in a URL. Control characters are refused here as well, as in the URL's own text."""
    if not has_no_controls(str(path)):
        raise WrongValue("its folder has a control character in its name")
    return quote(str(path))


def _path(text: str) -> Path:
    if not has_no_controls(text):
        raise WrongValue(f"{shown(text)} is not a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise WrongValue(f"{shown(text)} names a home folder that is not known") from None
