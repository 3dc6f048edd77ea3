"""Writes docs/settings.rst from the table of settings::

    python -m cocoa_tornado.settings.reference > docs/settings.rst

A test fails if the page is out of date.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from typing import Final

from .rows import Setting
from .table import TABLE
from .types import Flag

_INTRODUCTION: Final = """\
Settings
========

.. This page is generated from the table in cocoa_tornado/settings/table.py. Edit the table, then run
   python -m cocoa_tornado.settings.reference > docs/settings.rst

Every setting has a key, an environment variable and an option with the same name: ``duplicate_challenge``,
``COCOA_DUPLICATE_CHALLENGE``, ``--duplicate-challenge``. All of them are optional.

Sources, lowest to highest precedence: the defaults below; a TOML file given with ``--config`` or ``COCOA_CONFIG``; the
environment; the command line. An invalid value or an unknown name ends the command with exit status 2 and one line on
standard error, which names the setting, its source and the allowed values. Only the value with the highest precedence
is validated, so an invalid one can be overridden.

In a TOML file
    Table names are prefixes: ``group`` in the table ``[kafka]`` is ``kafka_group``. Setting both is an error, and so is
    an unknown key. Relative paths are relative to the file's folder.

In the environment
    An empty variable counts as unset. A list is separated by commas (``a,b``) or, for values that contain commas, a
    JSON array (``["a","b"]``). A variable that begins with ``COCOA_`` but names no setting is ignored with a warning,
    because Kubernetes adds such variables (``COCOA_GATEWAY_SERVICE_HOST``); one that looks like a misspelled setting is
    an error. A Kubernetes service named ``cocoa`` would set ``COCOA_PORT``: choose another name, or set
    ``enableServiceLinks: false``.

On the command line
    Repeat an option to give a list; ``--allowed-origins ""`` is an empty list. ``--access-log`` and
    ``--no-access-log`` mean yes and no.

Durations
    ``250ms``, ``2s``, ``1h30m``, ``7d``, or a number of seconds.

Sizes
    ``512KiB``, ``1MiB`` (1024), ``10MB`` (1000), or a number of bytes.

Yes or no
    ``true``, ``yes``, ``on``, ``1``; ``false``, ``no``, ``off``, ``0``. In TOML, ``true`` and ``false``.

Secrets
    ``@FILE`` reads a secret from a file, without the newline at its end. For a list of secrets, the file has one per
    line. Every user of the machine can see command lines, so prefer the environment or a file. A secret that begins
    with ``@`` must be in a file. No message, log line or ``repr`` shows a secret.

Reloading
    On SIGHUP the gateway reads all sources again. Settings marked *reloadable* change without a restart, for new
    connections and as far as possible for existing ones. The log names other changed settings, which need a restart.
    Files named by settings (keys, certificates, ``@FILE``) are read again even if the setting is unchanged.
"""


def reference() -> str:
    """Return the page as reStructuredText, ending in one newline."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield _INTRODUCTION
    section = ""
    for setting in TABLE.values():
        if setting.section != section:
            section = setting.section
            yield f"{section}\n{'-' * len(section)}\n"
        yield from _entry(setting)


def _entry(setting: Setting) -> Iterator[str]:
    yield f".. _setting-{setting.key.replace('_', '-')}:\n"
    yield f"``{setting.key}``"
    yield _wrapped(f"{_escaped(setting.summary)} {setting.more}") + "\n"
    yield f"    :names: ``{setting.environment}``, {_option(setting)}"
    yield f"    :default: {f'``{setting.default_text}``' if setting.default_text else 'none'}"
    yield f"    :allowed: {_escaped(setting.kind.allowed)}{'; several' if setting.is_list else ''}"
    if setting.reloadable:
        yield "    :reloadable: yes"
    yield ""


def _option(setting: Setting) -> str:
    if isinstance(setting.kind, Flag):
        return f"``{setting.option}``, ``--no-{setting.option[2:]}``"
    return f"``{setting.option} {setting.kind.metavar}``"


def _wrapped(text: str) -> str:
    indent = " " * 4
    return textwrap.fill(text, 116, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _escaped(text: str) -> str:
    """Escape plain text for reStructuredText."""
    return text.replace("\\", "\\\\").replace("*", "\\*").replace("_ ", "\\_ ")


def main() -> None:
    """Write the page to standard output."""
    sys.stdout.write(reference())


if __name__ == "__main__":
    main()
