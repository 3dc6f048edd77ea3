"""Click options made from the table of settings, and a help page that shows them section by section.

A command that takes settings looks like this::

    @click.command(cls=SettingsCommand)
    @settings_options()
    def serve(config: Path | None, **options: object) -> None:
        loaded = load_settings(config, options)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import click

from cocoa_tornado.errors import SettingError
from cocoa_tornado.settings import TABLE
from cocoa_tornado.settings.rows import Setting
from cocoa_tornado.settings.sources import CONFIG_VARIABLE, Loaded, load, read_secret
from cocoa_tornado.settings.types import Flag, WrongValue

F = TypeVar("F", bound=Callable[..., object])


class WrongSetting(click.ClickException):
    """A setting is wrong: one plain line on standard error, exit status 2."""

    exit_code: ClassVar[int] = 2


class SettingOption(click.Option):
    """An option for one setting. Its value stays text; the settings' own reading judges it."""

    def __init__(self, param_decls: Sequence[str], *, setting: Setting) -> None:
        self.section = setting.section
        is_flag = isinstance(setting.kind, Flag)
        declaration = f"{setting.option}/--no-{setting.option[2:]}" if is_flag else setting.option
        super().__init__(
            [setting.key, declaration, *param_decls],
            # Without a default of click's: only what is given on the command line outranks file and environment.
            default=None,
            type=click.BOOL if is_flag else click.STRING,
            multiple=setting.is_list,
            metavar=None if is_flag else setting.kind.metavar,
            help=_help(setting),
            show_default=False,
        )


class SettingsCommand(click.Command):
    """A command whose help has a heading for each section of the settings, after its other options."""

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
    """A decorator that adds ``--config`` and an option for each setting, or for those whose keys are in ``only``.

    The function gets ``config`` (a path or None) and each setting's key: text, a tuple of texts or a bool; None or ()
    where the option was not given.
    """
    unknown = set(only or ()) - set(TABLE)
    if unknown:
        raise ValueError(f"no such settings: {', '.join(sorted(unknown))}")
    rows = [row for row in TABLE.values() if only is None or row.key in only]

    def add(function: F) -> F:
        # Click reads the decorators from the bottom up.
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
    """What :func:`cocoa_tornado.settings.sources.load` returns, its errors turned into an exit with status 2.

    :param environ: the process's environment, if None
    :raises WrongSetting: a setting is wrong
    """
    try:
        return load(config, os.environ if environ is None else environ, options, with_keys=with_keys)
    except SettingError as error:
        raise WrongSetting(str(error)) from error


def given_secret(value: str, origin: str) -> str:
    """A secret given to a command: the text itself or, after ``@``, what is in a file, as for a setting.

    :param origin: the option or variable to blame
    :raises WrongSetting: there is none
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
    return f"{setting.summary}  [{'; '.join(notes)}]" if notes else setting.summary
