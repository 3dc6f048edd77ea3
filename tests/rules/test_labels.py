"""The list of labels names everything that the code counts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import cocoa_tornado
from cocoa_tornado.rules.labels import LABELS

PACKAGE = Path(cocoa_tornado.__file__).parent

NAMES = {
    "closed": "cocoa_connections_closed",
    "dropped": "cocoa_messages_dropped",
    "streams": "cocoa_speech_streams",
}

# Who takes a label, as which argument, and of which counter.
SPENDERS = {
    "Refusal": (2, "cocoa_handshakes"),
    "_unavailable": (0, "cocoa_handshakes"),
    "InvalidToken": (0, "cocoa_handshakes"),
    "InvalidClaims": (0, "cocoa_handshakes"),
    "MissingToken": (0, "cocoa_handshakes"),
    "CloseReason": (2, "cocoa_messages_dropped"),
    "_finish": (0, "cocoa_messages_dropped"),
    "Rejected": (0, "cocoa_records_quarantined"),
    "_note_loss": (1, "cocoa_speech_workers_lost"),
    "cancel": (0, "cocoa_speech_streams"),
}


def family_of(counter: str) -> str:
    """Of an attribute of the counters."""
    return NAMES.get(counter, f"cocoa_{counter}")


def labels_in_the_code() -> Iterator[tuple[str, str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "admin_tokens.py":
            continue  # operators' tokens that are refused are not counted
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name == "count" and len(node.args) >= 2 and isinstance(node.args[0], ast.Attribute):
                place, family = 1, family_of(node.args[0].attr)
            elif name in SPENDERS:
                place, family = SPENDERS[name]
            else:
                continue
            argument = node.args[place] if place < len(node.args) else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield family, argument.value, f"{path.name}:{node.lineno}"


def test_every_label_in_the_code_is_listed() -> None:
    found = list(labels_in_the_code())
    assert len(found) > 30  # the walk still finds them
    assert [entry for entry in found if entry[1] not in LABELS.get(entry[0], ())] == []


def test_no_label_is_listed_twice() -> None:
    for family, labels in LABELS.items():
        assert len(set(labels)) == len(labels), family
