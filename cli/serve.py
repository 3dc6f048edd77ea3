"""``cocoa serve``: runs one ``Gateway``, or the parent of several, with settings, signals and exit status."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from functools import partial
from pathlib import Path

import click

from cocoa_tornado import logs
from cocoa_tornado.errors import CocoaError, SettingError, SharedSecret
from cocoa_tornado.logs_format import LogFormat
from cocoa_tornado.plain_text import quoted
from cocoa_tornado.rules.addresses import masked
from cocoa_tornado.settings import Settings
from cocoa_tornado.settings.sources import check_files, load
from cocoa_tornado.systemd import Notifier
from cocoa_tornado.workers.place import take_place

from .options import SettingsCommand, WrongSetting, load_settings, settings_options
from .signals import ProcessSignals

log = logging.getLogger("cocoa.service")


@click.command(cls=SettingsCommand)
@settings_options()
@click.option(
    "--check",
    "only_check",
    is_flag=True,
    help="Check that the gateway can start with these settings, keys and certificates, and exit.",
)
@click.pass_context
def serve(context: click.Context, /, config: Path | None, only_check: bool, **options: object) -> None:
    """Accept device connections and deliver records from Kafka.

    Without options, it needs no file and no other service: it listens on 127.0.0.1:8080, with an embedded broker and a
    development key, which `cocoa mint-token` on this machine uses too.

    \b
    Examples:
      cocoa serve
      cocoa serve --port 0
      cocoa serve --broker kafka://kafka-1:9092,kafka-2:9092 --host 0.0.0.0 --jwt-key keys/public.pem
      cocoa serve --config conf/production.toml
      cocoa serve --config conf/production.toml --check

    Every setting is an option (--ping-interval), an environment variable (COCOA_PING_INTERVAL) and a key in the file
    (ping_interval). Options override variables, which override the file.

    With --workers N, N processes share the port under a parent, which restarts those that end and passes signals on.

    Signals: SIGTERM and SIGINT drain connections and stop; a second one, at least one second after the first, exits
    immediately. SIGHUP reloads keys, limits and the certificate.
    """
    signals = context.find_object(ProcessSignals) or ProcessSignals()
    try:
        place = take_place(os.environ)
    except ValueError as error:
        raise WrongSetting(str(error)) from error
    loaded = load_settings(config, options)
    try:
        check_files(loaded)
    except SettingError as error:
        raise WrongSetting(str(error)) from error
    settings = loaded.settings
    logs.configure(log_format(settings), settings.log_level, worker=None if place is None else place.name)
    if place is None:  # the parent has logged them
        for warning in loaded.warnings:
            log.warning(warning.event, extra=dict(warning.fields))
    try:
        if only_check:
            from .gateway import check

            check(settings)
            click.echo(
                f"the settings are valid: {settings.host}:{settings.port}, broker {quoted(masked(settings.broker))}"
            )
            return
        with contextlib.closing(Notifier(os.environ)) as notifier:
            # Each of the two imports what only it needs.
            if place is None and settings.workers > 1:
                from .parent import run_parent

                context.exit(run_parent(settings, signals, notifier, partial(load, config, os.environ, options)))
            from .gateway import Launch, run_gateway, settings_at

            run_gateway(Launch(settings_at(place, settings), config, options, notifier, place), signals)
    except SharedSecret as error:
        logs.show_errors_plainly()
        source = loaded.sources[error.setting]
        raise WrongSetting(str(SettingError(error.setting, source, error.PROBLEM, error.ALLOWED))) from error
    except CocoaError as error:
        logs.show_errors_plainly()
        raise click.ClickException(str(error)) from error


def log_format(settings: Settings) -> LogFormat:
    """Resolve ``auto``: text on a terminal, else JSON."""
    if settings.log_format == "auto":
        return "text" if sys.stderr is not None and sys.stderr.isatty() else "json"
    return settings.log_format
