"""``cocoa`` with workers that share neither broker nor presence, for tests without Kafka and Redis."""

from __future__ import annotations

import importlib
from typing import Any, cast

from cocoa_tornado.settings import checks

cast(Any, checks)._RULES = tuple(rule for rule in checks._RULES if rule is not checks._workers)

importlib.import_module("cocoa_tornado_cli.main").main()
