"""The examples of the AsyncAPI document, decoded as records."""

from __future__ import annotations

import pytest

from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.records import REASONS, Record, Rejected, decode

from .document import MESSAGES, RECORDS, Example, example_of, examples_of, json_headers, rejection_of

REJECTED = examples_of("rejectedRecord")


@pytest.mark.parametrize("example", examples_of(*RECORDS), ids=str)
def test_a_record_becomes_the_message_of_the_same_name(example: Example) -> None:
    decoded = decode(None, example.text.encode(), 0, list(json_headers(example).items()))
    assert isinstance(decoded, Record)
    assert decoded.payload.decode() == example_of("transcription", example.name).text
    fields = example.payload | {name.removeprefix("cocoa."): value for name, value in example.headers.items()}
    wanted = {"priority": "normal", "ttl": None, "collapse_key": None, "id": None} | fields
    options = Options(wanted["priority"], wanted["ttl"], wanted["collapse_key"], wanted["id"])
    assert (decoded.options or Options()) == options
    assert decoded.is_transient is (example.name in ("partial", "only-now"))


def test_every_record_has_recipients_and_every_message_a_record() -> None:
    names = [example.name for example in examples_of(*RECORDS)]
    assert names == [name for message in RECORDS for name in MESSAGES[message]["x-recipients"]]
    assert sorted([*names, "with-a-cursor"]) == sorted(example.name for example in examples_of("transcription"))


def test_there_is_an_example_of_every_option_and_every_kind_of_recipient() -> None:
    fields = {name for example in examples_of("record") for name in example.payload}
    assert {"to", "except", "priority", "ttl", "collapse_key", "id"} <= fields
    kinds = {kind for example in examples_of("record") for kind in example.payload.get("to", {})}
    assert kinds == {"device", "devices", "user", "group", "all"}
    assert {name for example in examples_of(*RECORDS) for name in example.headers} == {
        f"cocoa.{name}" for name in ("to", "except", "priority", "ttl", "collapse_key", "id")
    }


@pytest.mark.parametrize("example", REJECTED, ids=str)
def test_a_rejected_record_is_rejected_for_the_documented_reason(example: Example) -> None:
    record = rejection_of(example)
    assert decode(None, record.value, 0, list(record.headers.items())) == Rejected(example.headers["cocoa.reason"])


def test_every_reason_that_a_text_can_show_has_an_example() -> None:
    too_long_or_not_text = {"too_large", "too_deep", "not_utf8", "headers"}
    assert {example.headers["cocoa.reason"] for example in REJECTED} == REASONS - too_long_or_not_text
