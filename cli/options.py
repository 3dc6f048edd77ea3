"""Click options generated from the table of settings, and a help page that groups them by section.

A command that takes settings looks like this::

    @click.command(cls=SettingsCommand)
    @settings_options()
    def serve(config: Path | None, **options: object) -> None:
        loaded = load_settings(config, options)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click

from cocoa_tornado.errors import SettingError
from cocoa_tornado.plain_text import quoted
from cocoa_tornado.settings import TABLE
from cocoa_tornado.settings.rows import Setting
from cocoa_tornado.settings.sources import CONFIG_VARIABLE, Loaded, load, read_secret
from cocoa_tornado.settings.types import Flag, WrongValue

F = TypeVar("F", bound=Callable[..., object])


class WrongSetting(click.ClickException):
    """An invalid setting: one plain line on standard error, exit status 2."""

    exit_code: ClassVar[int] = 2


class WrongUsage(click.ClickException):
    """One plain line on standard error, exit status 2."""

    exit_code: ClassVar[int] = 2


class Seconds(click.FloatRange):
    """A number of seconds in a range. Rejects NaN, which click.FloatRange accepts."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not math.isfinite(seconds):
            self.fail(f"{quoted(str(value))} is not a number of seconds.")
        return super().convert(value, param, ctx)


class SettingOption(click.Option):
    """An option for one setting. The value stays text, which the settings parse and validate."""

    def __init__(self, param_decls: Sequence[str], *, setting: Setting) -> None:
        self.section = setting.section
        is_flag = isinstance(setting.kind, Flag)
        declaration = f"{setting.option}/--no-{setting.option[2:]}" if is_flag else setting.option
        super().__init__(
            [setting.key, declaration, *param_decls],
            # No default: only options on the command line override the file and the environment.
            default=None,
            type=click.BOOL if is_flag else click.STRING,
            multiple=setting.is_list,
            metavar=None if is_flag else setting.kind.metavar,
            help=_help(setting),
            show_default=False,
        )


class SettingsCommand(click.Command):
    """A command whose help lists its own options first, then the settings under a heading per section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                section = parameter.section if isinstance(parameter, SettingOption) else "Options"
                sections.setdefault(section, []).append(record)
        for section, records in sections.items():
            if records:
                with formatter.section(section):
                    formatter.write_dl(records)


def settings_options(only: Collection[str] | None = None) -> Callable[[F], F]:
    """Return a decorator that adds ``--config`` and an option for each setting, or for those with keys in ``only``.

    The function gets ``config`` (a path or None) and an argument per setting, named by its key: a text, a tuple of
    texts or a bool; None or () if the option is absent.
    """
    unknown = set(only or ()) - set(TABLE)
    if unknown:
        raise ValueError(f"no such settings: {', '.join(sorted(unknown))}")
    rows = [row for row in TABLE.values() if only is None or row.key in only]

    def add(function: F) -> F:
        # Decorators apply from the bottom up.
        for row in reversed(rows):
            click.option(cls=SettingOption, setting=row)(function)
        return click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help=f"Settings in a TOML file; also {CONFIG_VARIABLE}.",
        )(function)

    return add


def load_settings(
    config: Path | None,
    options: Mapping[str, object],
    environ: Mapping[str, str] | None = None,
    *,
    with_keys: bool = True,
) -> Loaded:
    """Call :func:`cocoa_tornado.settings.sources.load`, and turn its errors into an exit with status 2.

    :param environ: None for the process's environment
    :raises WrongSetting: a setting is invalid
    """
    try:
        return load(config, os.environ if environ is None else environ, options, with_keys=with_keys)
    except SettingError as error:
        raise WrongSetting(str(error)) from error


def given_secret(value: str, origin: str) -> str:
    """Return a secret given to a command: the text itself or, for ``@FILE``, the contents of the file.

    :param origin: the option or variable, for the error
    :raises WrongSetting: the secret is empty, or the file is unusable
    """
    try:
        return read_secret(value)
    except WrongValue as error:
        raise WrongSetting(f"{origin}: {error}") from error


def _help(setting: Setting) -> str:
    notes = []
    if setting.default_text:
        notes.append(f"default: {setting.default_text}")
    if setting.is_list:
        notes.append("repeatable")
    summary = setting.summary.replace("``", "")  # which the documentation has
    return f"{summary}  [{'; '.join(notes)}]" if notes else summary
