"""The records of ``produce.py --each-kind``; ``test_backends.py`` compares the other languages with them."""

from __future__ import annotations

import json

from cocoa_tornado.routing.address import Everyone, Group, User
from cocoa_tornado.rules.addressing import FIELDS, Options
from cocoa_tornado.rules.records import Record, decode

from .producer import of_each_kind

RECORDS = of_each_kind("99", "kitchen", "doll-1")


def decoded() -> dict[str, Record]:
    """By their text."""
    found = {}
    for key, fields, headers in RECORDS:
        record = decode(key.encode(), json.dumps(fields).encode(), 0, headers)
        assert isinstance(record, Record), fields
        found[fields["text"]] = record
    assert len(found) == len(RECORDS)
    return found


def test_each_kind_of_recipient_is_produced() -> None:
    assert {text: record.address for text, record in decoded().items() if record.address != "doll-1"} == {
        "to a user": User("99"),
        "to a group": Group("kitchen"),
        "to the rest of a group": Group("kitchen", frozenset({"doll-1"})),
        "to all devices": Everyone(),
        "to a group, by header": Group("kitchen"),
    }
    kinds = {kind for _, fields, _ in RECORDS for kind in fields.get("to", {})}
    assert kinds == {"device", "devices", "user", "group", "all"}


def test_each_option_is_produced() -> None:
    options = {text: record.options for text, record in decoded().items() if record.options}
    named = options.pop("with an id")
    assert options == {
        "worth sending for a minute": Options(ttl_s=60),
        "only for open connections": Options(ttl_s=0),
        "urgent": Options("high"),
        "first to be dropped": Options("low"),
        "volume 7": Options(collapse_key="volume"),
    }
    assert named is not None
    assert named.id is not None


def test_each_field_is_produced_in_the_value_or_in_a_header() -> None:
    names = {name for _, fields, _ in RECORDS for name in fields}
    names |= {name.removeprefix("cocoa.") for _, _, headers in RECORDS for name, _ in headers}
    assert set(FIELDS) <= names


def test_an_id_is_new_for_each_message() -> None:
    again = of_each_kind("99", "kitchen", "doll-1")
    ids = [fields["id"] for records in (RECORDS, again) for _, fields, _ in records if "id" in fields]
    assert len(set(ids)) == 2
