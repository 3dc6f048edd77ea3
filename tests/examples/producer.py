"""The producer in Python of ``examples/``, as a module."""

from __future__ import annotations

import runpy
import warnings
from typing import Any, TypeAlias

from .programs import EXAMPLES

Record: TypeAlias = tuple[str, dict[str, Any], list[tuple[str, bytes]]]
"""Key, fields of the value, headers."""


def of_each_kind(user: int | str, group: str, device: str) -> list[Record]:
    """What ``produce.py --each-kind`` sends, without the fields that each record has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python makes one when it is first imported
        names = runpy.run_path(str(EXAMPLES / "backends/python/produce.py"))
    records: list[Record] = names["of_each_kind"](user, group, device)
    return records
