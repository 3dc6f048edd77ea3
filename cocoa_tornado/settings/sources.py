"""The sources of settings: defaults, a TOML file, the environment and the command line, lowest to highest precedence.

Also which settings a reload may change.

Every problem raises a :class:`~cocoa_tornado.errors.SettingError` of one line, which names the setting, its source and
the allowed values, and never shows a secret.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import SettingError
from ..plain_files import NotText, check_file, read_file, text_of, without_line_end
from ..plain_text import one_line, strip_blanks
from ..rules.addresses import masked, without_user_info
from .checks import DEFAULT, KEY_SETTINGS, Warned, advice, check
from .domain import SecretText
from .rows import Setting
from .table import TABLE, Settings
from .types import ListOf, WrongValue, kind_of

PREFIX: Final = "COCOA_"
CONFIG_VARIABLE: Final = "COCOA_CONFIG"
OTHER_VARIABLES: Final = frozenset({CONFIG_VARIABLE, "COCOA_PROBE_TOKEN", "COCOA_ADMIN_URL", "COCOA_ADMIN_TOKEN"})
"""Variables that commands read but that are not settings."""
MAX_FILE_BYTES: Final = 1024 * 1024
MAX_SECRET_BYTES: Final = 64 * 1024
MAX_NAMED_FILE_BYTES: Final = 16 * 1024 * 1024
"""The largest key or certificate file. The largest certificate bundles have about a megabyte."""
MAX_TABLES: Final = 16
_BETTER_PLACES: Final = "use the environment or a file (@FILE for a setting that is a secret)"
# Long enough for any real path, and short enough for the rest of the message.
_MAX_NAME: Final = 200

# Variables that Kubernetes and Docker set for a service named cocoa or cocoa-anything.
_SERVICE_LINK: Final = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_LINK_VALUE: Final = re.compile(r"(tcp|udp|sctp)://.*")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and their origins.

    :ivar warnings: warnings to log
    :ivar sources: for each key, ``default``, ``file conf/x.toml``, ``environment COCOA_PORT`` or ``option --port``
    :ivar config: the TOML file, if any
    """

    settings: Settings
    warnings: tuple[Warned, ...]
    sources: Mapping[str, str]
    config: Path | None


class Changes(NamedTuple):
    """The keys whose values differ between two Settings, in the table's order.

    :ivar applied: those that a reload applies
    :ivar ignored: those that need a restart
    """

    applied: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True, repr=False)
class _Given:
    """A setting's value in a source. It has no repr, as it may be a secret.

    :ivar typed: whether it is a typed value (of TOML or code) rather than text to parse
    :ivar folder: the folder that a relative path in it is relative to
    """

    setting: Setting
    source: str
    value: Any
    typed: bool
    folder: Path


def load(
    config: Path | None, environ: Mapping[str, str], options: Mapping[str, object], *, with_keys: bool = True
) -> Loaded:
    """Merge the sources and validate the settings.

    Only the value with the highest precedence is validated, so an invalid one can be overridden. An unknown name is an
    error in any source.

    :param config: the TOML file; None for the one that ``COCOA_CONFIG`` names, if any
    :param environ: the environment; an empty variable counts as unset
    :param options: text or typed values by key; None and () count as unset
    :param with_keys: False for a caller with a key of its own: the gateway's keys are neither read nor validated
    :raises SettingError: see the module
    """
    path, path_source = _config_path(config, environ)
    unknown = _unknown_variables(environ)
    given: dict[str, _Given] = {}
    if path is not None:
        given |= {item.setting.key: item for item in _from_file(path, path_source)}
    given |= {item.setting.key: item for item in _from_environment(environ)}
    given |= {item.setting.key: item for item in _from_options(options)}
    if not with_keys:
        given = {key: item for key, item in given.items() if key not in KEY_SETTINGS}

    values: dict[str, Any] = {item.setting.attribute: _value(item) for item in given.values()}
    settings = Settings(**values)
    sources = {key: given[key].source if key in given else DEFAULT for key in TABLE}
    check(settings, sources, with_keys=with_keys)
    ignored = (Warned("unknown variables ignored", {"variables": ", ".join(unknown)}),) if unknown else ()
    return Loaded(settings, (*ignored, *_on_the_command_line(given.values()), *advice(settings)), sources, path)


def read_secret(value: str) -> str:
    """Return a secret that is not a setting, by the same rules: ``value`` itself, or the contents of the file for
    ``@FILE``.

    :raises WrongValue: the secret is empty or blank, or the file is unusable; the message shows no secret
    """
    text = _secret_file(value, Path())
    secret: str = kind_of(SecretText).from_text(value if text is None else text)
    if not secret:
        raise WrongValue("it is empty")
    return secret


def check_files(loaded: Loaded) -> None:
    """Check that everything that settings name exists: files, libraries, and the model of a speech engine. ``load``
    opens ``@`` files only.

    :raises SettingError: the first problem
    """
    check_named_files(loaded)
    for row in TABLE.values():
        value, source = getattr(loaded.settings, row.attribute), loaded.sources[row.key]
        library, folder = row.kind.library(value), row.kind.folder(value)
        missing = None if library is None else library.missing()
        if library is not None and missing is not None:
            problem = f"{library.needed_by} needs {missing}, which is not installed"
            allowed = f"{library.instead}, or pip install 'cocoa-tornado[{library.extra}]'"
            raise SettingError(row.key, source, problem, allowed)
        if folder and not os.path.isdir(folder):
            raise SettingError(row.key, source, f"folder {_one_line(folder)} does not exist", "a model's folder")


def check_named_files(loaded: Loaded) -> None:
    """Check that every file that settings name (keys, certificates) is readable.

    The libraries that open these files would block on a pipe, and report little about problems.

    :raises SettingError: the first unreadable file
    """
    for row in TABLE.values():
        for path in row.kind.files(getattr(loaded.settings, row.attribute)):
            try:
                check_file(path, MAX_NAMED_FILE_BYTES, utf16=row.is_list)
            except (OSError, ValueError) as error:
                problem = f"cannot read {_one_line(masked(str(path)))}: {_reason(error)}"
                raise SettingError(row.key, loaded.sources[row.key], problem, "a readable file") from error


def changes(old: Settings, new: Settings) -> Changes:
    """The settings that a reload from ``old`` to ``new`` applies, and those that it ignores."""
    differ = [row for row in TABLE.values() if getattr(old, row.attribute) != getattr(new, row.attribute)]
    return Changes(
        applied=tuple(row.key for row in differ if row.reloadable),
        ignored=tuple(row.key for row in differ if not row.reloadable),
    )


def reloaded(old: Settings, new: Settings) -> Settings:
    """The settings after a reload: ``old`` with the reloadable settings of ``new``.

    :raises SettingError: the combination violates a rule, for example because a secret was removed while the gateway
        listens on a network
    """
    rows = (row for row in TABLE.values() if row.reloadable)
    settings = dataclasses.replace(old, **{row.attribute: getattr(new, row.attribute) for row in rows})
    check(settings)
    return settings


def _config_path(config: Path | None, environ: Mapping[str, str]) -> tuple[Path | None, str]:
    if config is not None:
        return config, "option --config"
    named = environ.get(CONFIG_VARIABLE, "")
    return (Path(named) if named else None), f"environment {CONFIG_VARIABLE}"


def _from_file(path: Path, path_source: str) -> Iterator[_Given]:
    source = _one_line(f"file {path}")
    folder = Path(os.path.abspath(path)).parent
    for key, value in _flat(_read_toml(path, path_source), (), source).items():
        if key not in TABLE:
            raise _unknown_key(key, source)
        yield _Given(TABLE[key], source, value, True, folder)


def _read_toml(path: Path, path_source: str) -> dict[str, object]:
    source = _one_line(f"file {path}")
    try:
        data = read_file(path, MAX_FILE_BYTES, streams=True)
    except (OSError, ValueError) as error:
        # ValueError: the path contains a NUL character.
        raise SettingError(
            "config", path_source, f"cannot read {_one_line(str(path))}: {_reason(error)}", "a TOML file"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise SettingError("config", source, "it is larger than 1 MiB", "a TOML file")
    try:
        return tomllib.loads(text_of(data))
    except NotText as error:
        fault = error.__cause__
        lines = data.count(b"\n", 0, fault.start) if isinstance(fault, UnicodeDecodeError) else None
        subject = "it" if lines is None else f"line {lines + 1}"
        raise SettingError("config", source, f"{subject} {error}", "a TOML file") from error
    except RecursionError as error:
        raise SettingError("config", source, "it is nested too deeply", "a TOML file") from error
    except ValueError as error:
        raise SettingError("config", source, f"not TOML: {_one_line(str(error))}", "a TOML file") from error


def _flat(table: Mapping[str, object], above: tuple[str, ...], source: str) -> dict[str, object]:
    """The leaves of nested tables, their names joined with ``_``."""
    flat: dict[str, object] = {}
    for name, value in table.items():
        names = (*above, name)
        if len(names) > MAX_TABLES:
            raise SettingError("config", source, "its tables are nested too deeply", "a TOML file")
        leaves = _flat(value, names, source) if isinstance(value, dict) else {"_".join(names): value}
        for key, leaf in leaves.items():
            if key in flat:
                problem = f"it is set twice, as a key and in a table ({_one_line('.'.join(names))})"
                raise SettingError(key, source, problem, "one of the two")
            flat[key] = leaf
    return flat


def _unknown_key(key: str, source: str) -> SettingError:
    near = _nearest(key.lower().replace("-", "_"), TABLE, 0.6)
    hint = f"; did you mean {near}?" if near else ""
    return SettingError(key, source, f"no such setting{hint}")


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Given]:
    for setting in TABLE.values():
        text = environ.get(setting.environment, "")
        if not text:
            continue
        source = f"environment {setting.environment}"
        if not setting.is_list:
            yield _Given(setting, source, text, False, Path())
        elif strip_blanks(text).startswith("["):
            yield _Given(setting, source, _json_array(text, setting, source), True, Path())
        else:
            parts = [strip_blanks(part) for part in text.split(",")]
            yield _Given(setting, source, [part for part in parts if part], False, Path())


def _json_array(text: str, setting: Setting, source: str) -> list[object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        # The decoder's error contains the text, which may be a secret.
        value = None
    if not isinstance(value, list):
        problem = "it begins with [ but is not a JSON array"
        raise SettingError(setting.key, source, problem, 'a,b or ["a","b"]') from None
    return value


def _unknown_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The ``COCOA_`` variables that nothing reads. Raises SettingError if one looks like a misspelled setting."""
    known = {row.environment.removeprefix(PREFIX): row for row in TABLE.values()}
    unknown = []
    for name in sorted(environ):
        bare = name.removeprefix(PREFIX)
        if bare == name or bare in known or name in OTHER_VARIABLES or not environ[name]:
            continue
        linked = _SERVICE_LINK.search(f"_{bare}") or _SERVICE_LINK_VALUE.fullmatch(environ[name])
        near = None if linked else _nearest(bare, (*known, "CONFIG"), 0.75)
        if near:
            problem = f"no such setting; did you mean {PREFIX}{near}?"
            raise SettingError(bare.lower(), f"environment {name}", problem)
        unknown.append(_one_line(name))
    return tuple(unknown)


def _from_options(options: Mapping[str, object]) -> Iterator[_Given]:
    for key, value in options.items():
        if key not in TABLE:
            raise _unknown_key(key, f"option --{key.replace('_', '-')}")
        if value is None or value == () or value == []:
            continue
        setting = TABLE[key]
        # An empty item overrides a lower source with an empty list: --allowed-origins ""
        items = [item for item in value if item != ""] if isinstance(value, tuple | list) else value
        texts = items if isinstance(items, list) else [items]
        typed = not all(isinstance(item, str) for item in texts)
        yield _Given(setting, f"option {setting.option}", items, typed, Path())


def _on_the_command_line(given: Iterable[_Given]) -> Iterator[Warned]:
    """One warning for all secrets on the command line: settings that are secrets, and passwords in URLs."""
    keys = []
    for item in given:
        texts = item.value if isinstance(item.value, list) else [item.value]
        shown = [text for text in texts if isinstance(text, str) and not text.startswith("@")]
        secret = filter(None, shown) if item.setting.secret else (t for t in shown if without_user_info(t) != t)
        if any(secret) and item.source.startswith("option"):
            keys.append(item.setting.key)
    if keys:
        names = ", ".join(key for key in TABLE if key in keys)
        detail = f"any user of this machine can read them; {_BETTER_PLACES}"
        yield Warned("secrets on command line", {"settings": names, "detail": detail})


def _value(given: _Given) -> object:
    kind, value = given.setting.kind, given.value
    try:
        if given.setting.secret:
            value = _with_files_read(given)
        if isinstance(kind, ListOf) and not given.typed:
            result: Any = kind.from_texts(value if isinstance(value, list) else [value])
        else:
            result = kind.from_value(value) if given.typed else kind.from_text(value)
        return kind.relative_to(result, given.folder)
    except WrongValue as error:
        raise SettingError(given.setting.key, given.source, _problem(given, error), _allowed(given)) from None


def _problem(given: _Given, error: WrongValue) -> str:
    if given.setting.key == "port" and isinstance(given.value, str) and _SERVICE_LINK_VALUE.fullmatch(given.value):
        return f"{error}; Kubernetes sets it for a service named cocoa; rename that, or set enableServiceLinks: false"
    return str(error)


def _allowed(given: _Given) -> str:
    allowed = given.setting.kind.allowed
    if not given.setting.is_list:
        return allowed
    if given.source.startswith("option"):
        return f"{allowed} (repeat the option for several)"
    return f"{allowed} (an array for several)" if given.typed else f"{allowed} (commas between several)"


def _with_files_read(given: _Given) -> Any:
    """The value of a secret setting, with each ``@FILE`` replaced by the file's contents."""
    if isinstance(given.value, list):
        items: list[object] = []
        for item in given.value:
            lines = _secret_file(item, given.folder)
            items += [item] if lines is None else [line for line in _lines(lines) if line.strip()]
        return items
    text = _secret_file(given.value, given.folder)
    return given.value if text is None else text


def _secret_file(value: object, folder: Path) -> str | None:
    """The contents of the file, without a newline at the end; None if ``value`` names no file."""
    if not isinstance(value, str) or not value.startswith("@"):
        return None
    # Show only a path that cannot be a secret beginning with @.
    name = f" {_one_line(value[1:])}" if value.startswith(("@/", "@./", "@../", "@~/")) else ""
    try:
        data = read_file(folder / Path(value[1:]).expanduser(), MAX_SECRET_BYTES, streams=True)
        text = text_of(data) if len(data) <= MAX_SECRET_BYTES else ""
    except NotText as error:
        raise WrongValue(f"the file{name} that it names after @ {error}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise WrongValue(f"cannot read the file{name} that it names after @: {_reason(error)}") from None
    if len(data) > MAX_SECRET_BYTES:
        raise WrongValue(f"the file{name} that it names after @ is larger than 64 KiB")
    text = without_line_end(text)
    if not text.strip():
        raise WrongValue(f"the file{name} that it names after @ is empty")
    return text


def _nearest(name: str, names: Iterable[str], cutoff: float) -> str | None:
    near: Sequence[str] = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return near[0] if near else None


def _reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    reason = reason or "not a path"
    return reason[0].lower() + reason[1:]


def _lines(text: str) -> list[str]:
    """Split at newlines only; ``str.splitlines`` also splits at separators that a secret may contain."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def _one_line(text: str) -> str:
    return one_line(text, _MAX_NAME)
