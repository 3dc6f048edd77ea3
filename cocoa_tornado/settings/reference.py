"""Writes docs/settings.rst from the table of settings::

    python -m cocoa_tornado.settings.reference > docs/settings.rst

A test fails where the page is not what this module writes.
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

.. This page is made from the table in cocoa_tornado/settings/table.py. Change that, and write it anew with
   python -m cocoa_tornado.settings.reference > docs/settings.rst

Every setting has a key, an environment variable and an option, all made from one name: ``duplicate_challenge``,
``COCOA_DUPLICATE_CHALLENGE``, ``--duplicate-challenge``. The gateway starts with none of them set.

Sources, lowest to highest: the defaults below; a TOML file, named with ``--config`` or ``COCOA_CONFIG``; the
environment; the command line. A wrong value or an unknown name is one line on standard error that names the setting,
its source and what is allowed, and exit status 2. Only the source that wins is judged, so a wrong value can be
overridden.

In a TOML file
    Tables join with ``_``: ``group`` in the table ``[kafka]`` is ``kafka_group``. Giving both is an error, and so is a
    key that is no setting. A relative path is taken from the file's own folder.

In the environment
    An empty variable counts as absent. A list is separated by commas, or a JSON array: ``a,b`` or ``["a","b"]``; the
    array is for values that hold a comma. A variable that begins with ``COCOA_`` and is no setting is ignored with a
    warning, for Kubernetes adds such variables by itself (``COCOA_GATEWAY_SERVICE_HOST``); one that looks like a
    misspelt setting is an error. A Kubernetes service that is itself called ``cocoa`` would set ``COCOA_PORT``: call
    it something else, or set ``enableServiceLinks: false``.

On the command line
    An option for a list is given once per item; ``--allowed-origins ""`` is an empty list. ``--access-log`` and
    ``--no-access-log`` are yes and no.

Durations
    ``250ms``, ``2s``, ``1h30m``, ``7d``, or a number of seconds.

Sizes
    ``512KiB``, ``1MiB`` (1024), ``10MB`` (1000), or a number of bytes.

Yes or no
    ``true``, ``yes``, ``on``, ``1``; ``false``, ``no``, ``off``, ``0``. In TOML, ``true`` and ``false``.

Secrets
    Any of them may be given as ``@FILE``: the value is what the file holds, without the newline at its end. For a list
    of secrets, the file has one per line. Command lines are seen by every user of the machine, so prefer the
    environment or a file. A secret that itself begins with ``@`` must be put into a file. No message, log line or
    ``repr`` shows a secret.

Reloading
    On SIGHUP the sources are read again. What is marked *reloadable* changes without a restart, for connections that
    exist as far as it can and for new ones in any case; any other change waits for a restart, and the log says so. The
    files that settings name (keys, certificates, ``@FILE``) are read again even if their names are the same.
"""


def reference() -> str:
    """The page, as reStructuredText that ends in one newline."""
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
    """Plain text, with what reStructuredText would take for markup made harmless."""
    return text.replace("\\", "\\\\").replace("*", "\\*").replace("_ ", "\\_ ")


def main() -> None:
    """Write the page to standard output."""
    sys.stdout.write(reference())


if __name__ == "__main__":
    main()
