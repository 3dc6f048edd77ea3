"""The scripts of the Redis mailbox as texts. No Redis."""

from __future__ import annotations

import re

import pytest

from cocoa_tornado.mailboxes import redis_scripts
from cocoa_tornado.mailboxes.redis_scripts import MARK, OPEN, SCRIPTS
from cocoa_tornado.redis_store.scripts import Script
from cocoa_tornado.rules.retracted import MAX_RUNS

COMMANDS = re.compile(r"(?:redis\.p?call|\btry)\('([A-Z]+)'")
ALL = [(name, script) for name, script in vars(redis_scripts).items() if isinstance(script, Script)]


@pytest.mark.parametrize(("name", "script"), ALL)
def test_opening_calls_every_command_so_that_a_missing_permission_shows_then(name: str, script: Script) -> None:
    called = set(COMMANDS.findall(script.text.decode()))
    assert called
    assert called <= set(COMMANDS.findall(OPEN.text.decode()))


def test_every_script_is_loaded_again_when_redis_has_forgotten_one() -> None:
    assert set(SCRIPTS) == {script for _, script in ALL}


def test_the_scripts_merge_retracted_numbers_where_python_does() -> None:
    assert b"if #runs > %d then join(runs, 1) end" % MAX_RUNS in MARK.text
