"""The AsyncAPI document is valid, and says what the code says."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from cocoa_tornado import __version__
from cocoa_tornado.rules import close_codes
from cocoa_tornado.rules.addressing import FIELDS
from cocoa_tornado.rules.close_codes import CloseReason
from cocoa_tornado.rules.records import REASONS, Record, decode
from cocoa_tornado.settings import Settings

from ..profiles import examples
from .document import DOCUMENT, MESSAGES, RECORDS, Example, examples_of, resolved, validator

SCHEMA = Path(__file__).parent / "schema" / "asyncapi-3.0.0.json.gz"


def references(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_the_document_is_valid_asyncapi() -> None:
    schema = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    errors = Draft7Validator(schema).iter_errors(DOCUMENT)
    assert [("/".join(map(str, error.absolute_path)), error.message[:200]) for error in errors] == []


def test_every_reference_resolves() -> None:
    found = set(references(DOCUMENT))
    assert len(found) > 40
    for reference in found:
        resolved(reference)


def test_every_message_is_in_a_channel_and_an_operation() -> None:
    in_channels = {
        message["$ref"] for channel in DOCUMENT["channels"].values() for message in channel["messages"].values()
    }
    assert in_channels == {f"#/components/messages/{name}" for name in MESSAGES}
    in_operations = Counter(
        message["$ref"] for operation in DOCUMENT["operations"].values() for message in operation["messages"]
    )
    assert in_operations == {
        f"#/channels/{name}/messages/{message}": 1
        for name, channel in DOCUMENT["channels"].items()
        for message in channel["messages"]
    }


@pytest.mark.parametrize("name", MESSAGES)
def test_every_message_has_examples_with_names_of_their_own(name: str) -> None:
    names = [example.name for example in examples_of(name)]
    assert names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("example", examples_of(*MESSAGES), ids=str)
def test_every_example_is_one_of_its_message(example: Example) -> None:
    for part, value in (("payload", example.payload), ("headers", example.headers)):
        assert [error.message for error in validator(example.message, part).iter_errors(value)] == []


def test_the_version_and_the_topics_are_the_gateways() -> None:
    settings, channels = Settings(), DOCUMENT["channels"]
    assert DOCUMENT["info"]["version"] == __version__
    assert [channels[name]["address"] for name in ("device", "results", "deviceMessages", "quarantine")] == [
        "/ws",
        settings.kafka_results_topic,
        settings.kafka_messages_topic,
        settings.kafka_quarantine_topic,
    ]


def test_the_close_codes_are_those_of_the_gateway() -> None:
    rows = re.findall(r"^\| (\d{4}) \| (.+) \|$", DOCUMENT["channels"]["device"]["description"], re.MULTILINE)
    reasons = [value for value in vars(close_codes).values() if isinstance(value, CloseReason)]
    quoted = {(int(code), text.strip("`")) for code, text in rows if text.startswith("`")}
    assert quoted == {(reason.code, reason.text) for reason in reasons} | {(1009, "message over 524288 bytes")}
    assert {int(code) for code, text in rows if not text.startswith("`")} == {1000, 1002, 1007}


def test_the_reasons_for_rejecting_a_record_are_those_of_the_code() -> None:
    reasons = MESSAGES["rejectedRecord"]["headers"]["properties"]["cocoa.reason"]["enum"]
    assert sorted(reasons) == sorted(REASONS)


def test_the_fields_of_a_record_are_those_of_the_code() -> None:
    assert set(FIELDS) <= resolved("#/components/schemas/recordValue")["properties"].keys()
    in_headers = resolved("#/components/schemas/options")["properties"].keys() | {"cocoa.to", "cocoa.except"}
    assert in_headers == {f"cocoa.{field}" for field in FIELDS}


# Not 1.0, which is an integer for JSON schema, and only ASCII, because JSON schema counts characters.
NAMES = ["doll-1", "d" * 128, "d" * 129, "", "a\0b", "a\x1fb", "a\x7fb", "a\x9fb", 7, None]
LISTS: list[object] = [[], ["a", "a"], ["a"] * 1_000, ["a"] * 1_001, ["a", ""], "a", None]
USERS: list[object] = [99, "99", "", -1, 9.5, True, None, []]
RECIPIENTS: list[dict[str, Any]] = [
    *({"device": name} for name in NAMES),
    *({"devices": names} for names in LISTS),
    *({"user": user} for user in USERS),
    *({"group": name} for name in NAMES),
    *({"all": value} for value in (True, False, 1, None)),
    *({}, {"all": True, "user": 99}, {"topic": "news"}, {"all": True, "x": 1}),
]
VALUES = [
    *NAMES,
    *RECIPIENTS,
    "high",
    "normal",
    "low",
    "High",
    "k" * 64,
    "k" * 65,
    0,
    60,
    -1,
    0.5,
    10**30,
    True,
    [],
    ["a"],
]


def accepted(value: dict[str, object], headers: dict[str, object] | None = None) -> bool:
    texts = [(name, json.dumps(header).encode()) for name, header in (headers or {}).items()]
    return isinstance(decode(None, json.dumps(value).encode(), 0, texts), Record)


def of_fields(*fields: str) -> st.SearchStrategy[dict[str, object]]:
    """Mostly values that are at home in the field: otherwise hardly a record would be valid."""
    fitting = {
        "device_id": st.sampled_from(NAMES),
        "to": st.sampled_from(RECIPIENTS),
        "except": st.sampled_from([{"devices": []}, {"devices": ["a"]}, {"devices": ["a"], "x": 1}]),
        "priority": st.sampled_from(["high", "normal", "low"]),
        "ttl": st.sampled_from([0, 60]),
        "collapse_key": st.sampled_from(["k", "k" * 64]),
        "id": st.sampled_from(["k", "k" * 65]),
    }
    return st.fixed_dictionaries(
        {}, optional={field: fitting[field] | fitting[field] | st.sampled_from(VALUES) for field in fields}
    )


@pytest.mark.parametrize("field", ["device_id", *FIELDS])
@pytest.mark.parametrize("others", [{}, {"device_id": "doll-1"}, {"to": {"all": True}}], ids=str)
def test_the_schema_accepts_the_values_that_the_gateway_accepts(field: str, others: dict[str, object]) -> None:
    judges = validator("record", "payload")
    values = [
        value for value in VALUES if judges.is_valid(others | {field: value}) is not accepted(others | {field: value})
    ]
    assert values == []


@examples(300)
@given(of_fields("device_id", *FIELDS))
def test_the_schema_accepts_the_records_that_the_gateway_accepts(value: dict[str, object]) -> None:
    assert validator("record", "payload").is_valid(value) is accepted(value)


@examples(200)
@given(of_fields(*FIELDS))
def test_the_schema_accepts_the_headers_that_the_gateway_accepts(fields: dict[str, object]) -> None:
    headers = {f"cocoa.{field}": value for field, value in fields.items() if value is not None}
    is_addressed = headers.keys() & {"cocoa.to", "cocoa.except"}
    message = RECORDS[1] if is_addressed else RECORDS[0]
    assert validator(message, "headers").is_valid(headers) is accepted({"device_id": "doll-1"}, headers)
