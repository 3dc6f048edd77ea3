"""The commands of the load generator: Go leaves a field out without a word if two embedded structs name it alike."""

from __future__ import annotations

import re
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "bench" / "load"


def struct(name: str) -> str:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.go")))
    found = re.search(rf"^type {name} struct \{{\n(.*?)^\}}", text, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found[1]


def test_no_two_parts_of_a_command_have_a_field_of_the_same_name() -> None:
    parts = re.findall(r"^\t(\w+)$", struct("command"), re.MULTILINE)
    assert len(parts) > 1
    names = [name for part in parts for name in re.findall(r'json:"(\w+)', struct(part))]
    assert sorted(set(names)) == sorted(names)
