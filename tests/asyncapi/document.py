"""``docs/asyncapi.yaml``: its messages, their examples, and validators of its schemas."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from jsonschema import Draft7Validator

DOCS: Final = Path(__file__).parent.parent.parent / "docs"
# The loader in C takes a tenth of the time.
DOCUMENT: Final[dict[str, Any]] = yaml.load(
    (DOCS / "asyncapi.yaml").read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
)
MESSAGES: Final[dict[str, Any]] = DOCUMENT["components"]["messages"]
RECORDS: Final = ("record", "recordAddressedByHeader")


class Example(NamedTuple):
    """One example of a message. ``str()`` is its id in pytest's output."""

    message: str
    name: str
    payload: Any
    headers: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.message}-{self.name}"

    @property
    def text(self) -> str:
        """The payload as JSON, compact like all that the gateway sends."""
        return json.dumps(self.payload, ensure_ascii=False, separators=(",", ":"))


def examples_of(*messages: str) -> list[Example]:
    return [
        Example(message, example["name"], example["payload"], example.get("headers", {}))
        for message in messages
        for example in MESSAGES[message]["examples"]
    ]


def example_of(message: str, name: str) -> Example:
    return next(example for example in examples_of(message) if example.name == name)


def json_headers(example: Example) -> dict[str, bytes]:
    """The headers of a record, each a JSON text."""
    return {name: json.dumps(value).encode() for name, value in example.headers.items()}


class Rejection(NamedTuple):
    """An example of a record that is rejected.

    :ivar headers: of the record itself
    :ivar added: by the gateway
    """

    value: bytes | None
    headers: dict[str, bytes]
    added: dict[str, bytes]


def rejection_of(example: Example) -> Rejection:
    by_gateway = MESSAGES["rejectedRecord"]["headers"]["properties"]
    headers = {name: value.encode() for name, value in example.headers.items()}
    value = None if example.payload is None else example.payload.encode()
    own = {name: text for name, text in headers.items() if name not in by_gateway}
    return Rejection(value, own, {name: text for name, text in headers.items() if name in by_gateway})


def resolved(reference: str) -> Any:
    """Resolve a reference within the document. Raises KeyError."""
    assert reference.startswith("#/"), reference
    found: Any = DOCUMENT
    for part in reference[2:].split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


@cache
def validator(message: str, part: str) -> Draft7Validator:
    """:param part: ``payload`` or ``headers``; a message without a schema for it accepts anything"""
    schema = MESSAGES[message].get(part, {})
    return Draft7Validator({"allOf": [schema], "components": DOCUMENT["components"]})
