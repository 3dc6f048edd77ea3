"""Which devices a record is for and how it is delivered: a test for each rule, and a second reader to compare with."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cocoa_tornado.routing.address import Address, Devices, Everyone, Group, User
from cocoa_tornado.rules import records
from cocoa_tornado.rules.addressing import FIELDS, MAX_TTL_S, Options
from cocoa_tornado.rules.records import Record, Rejected, decode
from cocoa_tornado.rules.terms import Terms

from ..profiles import examples

Header: TypeAlias = tuple[str, bytes | None]


def decoded(members: str, *headers: Header) -> Record:
    """Decode a record with these members."""
    found = decode(None, f"{{{members}}}".encode(), 7, headers)
    assert isinstance(found, Record), found
    return found


def reason_for(members: str, *headers: Header) -> str:
    found = decode(None, f"{{{members}}}".encode(), 7, headers)
    assert isinstance(found, Rejected), found
    return found.reason


def message(members: str, *headers: Header) -> str:
    """The device's message, without the braces and the type."""
    head, _, rest = decoded(members, *headers).payload.decode().partition('"type":"transcription"')
    assert head == "{"
    return rest.removeprefix(",").removesuffix("}")


def to(text: str) -> Address:
    """Whom ``to`` addresses: the same in the value, in a header, and however it is spelled."""
    found = decoded(f'"to":{text},"text":"x"')
    assert decoded('"text":"x"', ("cocoa.to", text.encode())) == found
    spaced = re.sub(r"([{}:,\[\]])", r" \1 ", text) if '"' not in text.replace('":', "") else text
    assert decoded(f'"text":"x","to":{spaced}') == found
    assert decoded(f'"\\u0074o":{text},"text":"x"') == found
    assert (found.payload, found.options) == (b'{"type":"transcription","text":"x"}', None)
    return found.address


def options(field: str, text: str) -> Options | None:
    """Read a field, with the same result from the value and from a header."""
    found = decoded(f'"device_id":"d","{field}":{text}')
    assert decoded('"device_id":"d"', (f"cocoa.{field}", text.encode())).options == found.options
    return found.options


def is_invalid(field: str, text: str, others: str = '"device_id":"d"') -> bool:
    """Whether a field rejects the record, by its own name, in the value as in a header."""
    answers = {
        decode(None, f'{{{others},"{field}":{text}}}'.encode(), 0),
        decode(None, f'{{"{field}":{text},{others}}}'.encode(), 0),
        decode(None, f"{{{others}}}".encode(), 0, [(f"cocoa.{field}", text.encode())]),
    }
    return answers == {Rejected(field)}


def names(count: int) -> str:
    return json.dumps([f"d{number}" for number in range(count)])


# -- to


def test_to_addresses_a_device_several_a_user_a_group_or_all() -> None:
    assert to('{"device":"a"}') == "a"
    assert to('{"devices":["b","a"]}') == Devices(("b", "a"))
    assert to('{"user":99}') == User(99)
    assert to('{"user":"99"}') == User("99")
    assert to('{"group":"red"}') == Group("red")
    assert to('{"all":true}') == Everyone()


def test_user_99_and_user_99_in_quotes_are_two() -> None:
    assert to('{"user":99}') != to('{"user":"99"}')


@pytest.mark.parametrize("number", ["0", "-1", "123456789012345678901234567890", "-" + "9" * 4299])
def test_a_user_may_be_any_integer(number: str) -> None:
    assert to(f'{{"user":{number}}}') == User(int(number))


def test_minus_zero_is_zero() -> None:
    assert to('{"user":-0}') == User(0)


@pytest.mark.parametrize("name", ["", "ä" * 500, "a\\nb", "99"])
def test_a_user_may_be_any_string_that_a_token_may_hold(name: str) -> None:
    assert to(f'{{"user":"{name}"}}') == User(json.loads(f'"{name}"'))


@pytest.mark.parametrize(
    "user", ["99.0", "1e2", "1E2", "-1.5", "true", "false", "null", "[99]", '{"id":99}', '"\\ud800"', "9" * 4301]
)
def test_a_user_is_nothing_but_an_integer_or_a_string(user: str) -> None:
    assert is_invalid("to", f'{{"user":{user}}}')


BAD_NAMES = ['""', f'"{"d" * 129}"', f'"{"ä" * 65}"', '"a\\nb"', '"a\x7fb"', '"\\ud800"', "5", "null", "true", '["a"]']


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_device_and_a_group_are_named_as_in_a_token(name: str) -> None:
    assert is_invalid("to", f'{{"device":{name}}}')
    assert is_invalid("to", f'{{"group":{name}}}')
    assert is_invalid("to", f'{{"devices":["a",{name}]}}')
    assert is_invalid("except", f'{{"devices":["a",{name}]}}', '"to":{"all":true}')


@pytest.mark.parametrize("name", ["d" * 128, "ä" * 64, " ", "/"])
def test_a_device_and_a_group_may_have_128_bytes(name: str) -> None:
    assert to(f'{{"device":"{name}"}}') == name
    assert to(f'{{"group":"{name}"}}') == Group(name)


def test_a_thousand_devices_may_be_named_and_not_one_more() -> None:
    address = to(f'{{"devices":{names(1_000)}}}')
    assert isinstance(address, Devices)
    assert len(address.device_ids) == 1_000
    assert is_invalid("to", f'{{"devices":{names(1_001)}}}')
    assert is_invalid("to", '{"devices":[]}')


def test_duplicates_are_counted_before_they_are_removed() -> None:
    assert to('{"devices":["b","a","b"]}') == Devices(("b", "a"))
    assert to('{"devices":["a","a"]}') == "a"
    assert to(f'{{"devices":{json.dumps(["a"] * 1_000)}}}') == "a"
    assert is_invalid("to", f'{{"devices":{json.dumps(["a"] * 1_001)}}}')


@pytest.mark.parametrize("devices", ['"a"', '{"a":1}', "null", "1", "true"])
def test_devices_is_an_array(devices: str) -> None:
    assert is_invalid("to", f'{{"devices":{devices}}}')


@pytest.mark.parametrize("value", ["false", "null", "1", '"true"', "[]", "{}"])
def test_all_is_nothing_but_true(value: str) -> None:
    assert is_invalid("to", f'{{"all":{value}}}')


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"device":"a","user":1}',
        '{"all":true,"group":"red"}',
        '{"device":"a","user":null}',  # null is an absent field, and no absent member
        '{"device":"a","device":"a"}',
        '{"device":"a","devic\\u0065":"b"}',
        '{"device":"a","why":"x"}',
        '{"Device":"a"}',
        '{"device_id":"a"}',
        '{"topic":"a"}',
        '{"to":{"device":"a"}}',
        '"a"',
        '"{\\"device\\":\\"a\\"}"',
        '["a"]',
        "[]",
        '""',
        "true",
        "5",
        '{"device":{"device":"a"}}',
    ],
)
def test_to_is_an_object_with_exactly_one_of_its_members(text: str) -> None:
    assert is_invalid("to", text)


def test_to_decides_and_the_device_id_is_neither_added_nor_replaced_nor_judged() -> None:
    assert decoded('"to":{"group":"red"},"device_id":"d"').address == Group("red")
    assert message('"to":{"group":"red"},"device_id":"d"') == '"device_id":"d"'
    assert message('"to":{"device":"a"},"text":"x"') == '"text":"x"'
    assert message('"device_id":5,"to":{"device":"a"},"text":"x"') == '"device_id":5,"text":"x"'
    assert decode(None, b'{"to":{"all":true}}', 0) == Record(Everyone(), b'{"type":"transcription"}', 0)


def test_a_user_id_by_itself_has_no_recipients() -> None:
    assert reason_for('"user_id":99') == "no_device"
    assert decoded('"user_id":99,"device_id":"d"').address == "d"


def test_two_device_ids_are_ambiguous_also_where_to_decides() -> None:
    assert reason_for('"to":{"all":true},"device_id":"a","device_id":"b"') == "duplicate_device"


# -- except


def test_except_leaves_devices_out_of_a_user_a_group_and_all() -> None:
    excluded = '"except":{"devices":["a","b","a"]}'
    names = frozenset({"a", "b"})
    assert decoded(f'"to":{{"user":99}},{excluded}').address == User(99, names)
    assert decoded(f'{excluded},"to":{{"group":"red"}}').address == Group("red", names)
    assert decoded(f'"to":{{"all":true}},{excluded}').address == Everyone(names)
    assert message(f'"to":{{"all":true}},"text":"x",{excluded}') == '"text":"x"'


def test_except_may_name_none_and_a_thousand() -> None:
    assert decoded('"to":{"all":true},"except":{"devices":[]}').address == Everyone()
    address = decoded(f'"to":{{"all":true}},"except":{{"devices":{names(1_000)}}}').address
    assert isinstance(address, Everyone)
    assert len(address.excluded) == 1_000
    assert is_invalid("except", f'{{"devices":{names(1_001)}}}', '"to":{"all":true}')


@pytest.mark.parametrize("others", ['"device_id":"d"', '"to":{"device":"d"}', '"to":{"devices":["d","e"]}'])
def test_except_goes_only_with_a_user_a_group_or_all(others: str) -> None:
    assert is_invalid("except", '{"devices":["a"]}', others)
    assert is_invalid("except", '{"devices":[]}', others)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '["a"]',
        '"a"',
        "true",
        '{"devices":null}',
        '{"devices":"a"}',
        '{"device":"a"}',
        '{"devices":["a"],"device":"b"}',
        '{"devices":["a"],"groups":["red"]}',
        '{"devices":["a"],"devices":["b"]}',
    ],
)
def test_except_is_an_object_of_devices_and_nothing_else(text: str) -> None:
    assert is_invalid("except", text, '"to":{"all":true}')


# -- priority, ttl, collapse_key, id


def test_a_priority_is_high_normal_or_low() -> None:
    assert options("priority", '"high"') == Options(priority="high")
    assert options("priority", '"low"') == Options(priority="low")
    assert options("priority", '"normal"') is None


@pytest.mark.parametrize("text", ['"HIGH"', '"High"', '"high "', '""', '"urgent"', "1", "true", "[]", '["high"]', "{}"])
def test_a_priority_is_nothing_else(text: str) -> None:
    assert is_invalid("priority", text)


@pytest.mark.parametrize(("text", "ttl_s"), [("0", 0), ("-0", 0), ("1", 1), ("3600", 3600)])
def test_a_ttl_is_a_number_of_seconds(text: str, ttl_s: int) -> None:
    assert options("ttl", text) == Options(ttl_s=ttl_s)


@pytest.mark.parametrize("text", [str(10**12 + 1), "9" * 30, "9" * 5_000])
def test_a_ttl_of_any_length_is_valid(text: str) -> None:
    assert options("ttl", text) == Options(ttl_s=MAX_TTL_S)


@pytest.mark.parametrize(
    "text", ["-1", "1.0", "1e3", "0.5", "true", "false", '"60"', '""', "[60]", "{}", "-" + "9" * 5_000]
)
def test_a_ttl_is_an_integer_from_0(text: str) -> None:
    assert is_invalid("ttl", text)


@pytest.mark.parametrize("field", ["collapse_key", "id"])
@pytest.mark.parametrize("text", ["k", "k" * 64, "ä" * 32, " ", "a\nb"])
def test_a_collapse_key_and_an_id_have_1_to_64_bytes(field: str, text: str) -> None:
    assert options(field, json.dumps(text, ensure_ascii=False)) == Options(**{field: text})  # type: ignore[arg-type]
    assert options(field, json.dumps(text)) == Options(**{field: text})  # type: ignore[arg-type]


BAD_KEYS = ['""', f'"{"k" * 65}"', f'"{"ä" * 32}k"', '"\\ud800"', "5", "true", "[]", '["k"]', "{}"]


@pytest.mark.parametrize("text", BAD_KEYS)
def test_a_collapse_key_is_nothing_else(text: str) -> None:
    assert is_invalid("collapse_key", text)


@pytest.mark.parametrize("text", [*BAD_KEYS[:3], *BAD_KEYS[4:], "null"])
def test_an_id_that_is_no_such_string_is_an_ordinary_field_in_the_value(text: str) -> None:
    found = decoded(f'"id":{text},"device_id":"d"')
    assert (found.options, found.payload) == (None, f'{{"type":"transcription","id":{text},"device_id":"d"}}'.encode())
    assert message(f'"id":1,"device_id":"d","id":{text}') == f'"id":{text},"device_id":"d"'


def test_an_id_of_half_a_surrogate_pair_is_an_ordinary_field_that_cannot_be_sent() -> None:
    assert reason_for('"device_id":"d","id":"\\ud800"') == "not_unicode"


@pytest.mark.parametrize("text", BAD_KEYS)
def test_an_id_that_is_no_such_string_is_invalid_in_a_header(text: str) -> None:
    assert reason_for('"device_id":"d"', ("cocoa.id", text.encode())) == "id"
    assert reason_for('"device_id":"d","id":"i"', ("cocoa.id", text.encode())) == "id"


def test_the_id_stays_in_the_values_place_and_comes_last_from_a_header() -> None:
    assert message('"id":"i","device_id":"d","a":1') == '"id":"i","device_id":"d","a":1'
    assert message('"device_id":"d","a":1', ("cocoa.id", b"i")) == '"device_id":"d","a":1,"id":"i"'
    assert message('"id":"old","device_id":"d"', ("cocoa.id", b"i")) == '"device_id":"d","id":"i"'
    assert message('"id":5,"device_id":"d"', ("cocoa.id", b"i")) == '"device_id":"d","id":"i"'
    assert message('"id":"old","device_id":"d"', ("cocoa.id", b"null")) == '"id":"old","device_id":"d"'
    assert decoded('"id":5,"device_id":"d"', ("cocoa.id", b"i")).options == Options(id="i")


def test_nothing_but_the_id_is_passed_on() -> None:
    fields = '"to":{"all":true},"except":{"devices":["a"]},"priority":"low","ttl":5,"collapse_key":"k","id":"i"'
    found = decoded(f'"a":1,{fields},"b":2')
    assert found.payload == b'{"type":"transcription","a":1,"id":"i","b":2}'
    assert found[0::5] == (Everyone(frozenset({"a"})), Options("low", 5, "k", "i"))


def test_fields_in_a_nested_object_are_passed_on() -> None:
    nested = '"o":{"to":1,"except":2,"priority":3,"ttl":4,"collapse_key":5,"id":6}'
    assert message(f'"device_id":"d",{nested}') == f'"device_id":"d",{nested}'


# -- null, and twice


@pytest.mark.parametrize("field", FIELDS[:-1])
def test_null_counts_as_absent_and_is_not_passed_on(field: str) -> None:
    assert decoded(f'"device_id":"d","{field}":null') == decoded('"device_id":"d"')
    assert decoded('"device_id":"d"', (f"cocoa.{field}", b" null ")) == decoded('"device_id":"d"')
    assert decoded('"device_id":"d"', (f"cocoa.{field}", None)) == decoded('"device_id":"d"')
    assert reason_for('"to":null') == "no_device"


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(("one", "other"), [("null", '"k"'), ('"k"', "null"), ('"k"', '"k"')])
def test_a_field_that_stands_twice_is_invalid(field: str, one: str, other: str) -> None:
    assert reason_for(f'"device_id":"d","{field}":{one},"{field}":{other}') == field
    assert reason_for(f'"device_id":"d","{field}":{one},"\\u{ord(field[0]):04x}{field[1:]}":{other}') == field


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(("one", "other"), [(None, b"k"), (b"k", b"null"), (b"k", b"k"), (None, None), (b"\xff", b"k")])
def test_a_header_that_stands_twice_is_invalid(field: str, one: bytes | None, other: bytes | None) -> None:
    headers = [(f"cocoa.{field}", one), ("trace", b"t"), (f"cocoa.{field}", other)]
    assert reason_for('"device_id":"d"', *headers) == field


def test_nulls_that_stand_twice_are_invalid_except_as_an_ordinary_id() -> None:
    assert reason_for('"device_id":"d","ttl":null,"ttl":null') == "ttl"
    assert message('"device_id":"d","id":null,"id":null') == '"device_id":"d","id":null'


# -- headers


def test_a_header_overrides_the_value_whose_field_is_removed_unread() -> None:
    for unread in ('"to":{"device":"b"}', '"to":5', '"to":"\\ud800"', '"to":1,"to":2'):
        found = decoded(f'"device_id":"d",{unread}', ("cocoa.to", b'{"device":"a"}'))
        assert (found.address, found.payload) == ("a", b'{"type":"transcription","device_id":"d"}')
    assert decoded('"device_id":"d","ttl":"x","ttl":1', ("cocoa.ttl", b"5")).options == Options(ttl_s=5)
    assert message('"device_id":"d","id":"\\ud800","id":"x"', ("cocoa.id", b"i")) == '"device_id":"d","id":"i"'


def test_an_absent_header_overrides_nothing() -> None:
    for absent in (None, b"null"):
        assert decoded('"device_id":"d","ttl":1', ("cocoa.ttl", absent)).options == Options(ttl_s=1)
        assert reason_for('"device_id":"d","ttl":-1', ("cocoa.ttl", absent)) == "ttl"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"k", "k"),
        (b'"k"', "k"),
        (b' "k" ', "k"),
        (b"two words", "two words"),
        (b"NaN", "NaN"),
        (b"Infinity", "Infinity"),
        (b"  ", "  "),
        (b"{", "{"),
        (b"'k'", "'k'"),
        (b"5 6", "5 6"),
        (b"05", "05"),
        ("ü".encode(), "ü"),
        ("\ufeff5".encode(), "\ufeff5"),
        (b"\x00", "\x00"),
        (b"[" * 64, "[" * 64),
    ],
)
def test_a_header_is_json_and_what_is_not_json_is_a_string(value: bytes, text: str) -> None:
    assert decoded('"device_id":"d"', ("cocoa.collapse_key", value)).options == Options(collapse_key=text)


@pytest.mark.parametrize("value", [b"5", b"true", b"{}", b"[]", b'["k"]', b"1e400", b"", b"\xff", b"k\xc3", b"[" * 65])
def test_a_header_that_is_no_valid_value_rejects_the_record(value: bytes) -> None:
    assert reason_for('"device_id":"d"', ("cocoa.collapse_key", value)) == "collapse_key"


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [b"", b"\xff\xfe", b"[" * 100_000, b"[" * 500 + b"]" * 500, b'{"device":' * 90])
def test_a_header_of_nonsense_is_invalid_whatever_its_field(field: str, value: bytes) -> None:
    assert reason_for('"device_id":"d"', (f"cocoa.{field}", value)) == field


def test_headers_take_words_without_quotes() -> None:
    assert decoded('"device_id":"d"', ("cocoa.priority", b"high")).options == Options(priority="high")
    assert decoded('"device_id":"d"', ("cocoa.ttl", b"60")).options == Options(ttl_s=60)
    assert reason_for('"device_id":"d"', ("cocoa.ttl", b'"60"')) == "ttl"
    assert reason_for('"device_id":"d"', ("cocoa.to", b"d")) == "to"


@pytest.mark.parametrize(
    "name",
    ["cocoa.reason", "cocoa.generation", "cocoa.canary", "cocoa.", "cocoa.TO", "Cocoa.to", "to", "cocoa.to ", "ttl"],
)
def test_any_other_header_is_ignored(name: str) -> None:
    twice: tuple[Header, ...] = ((name, b"\xff"), (name, None))
    assert decoded('"device_id":"d"', *twice) == decoded('"device_id":"d"')
    assert decoded('"device_id":"d"', *twice, ("cocoa.ttl", b"5"), *twice).options == Options(ttl_s=5)


def test_a_record_whose_options_stand_in_headers_is_decoded_as_fast_as_one_without() -> None:
    """Backends set them for every record. A reader that is not called cannot fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_decode_any", None)
        assert decoded('"device_id":"d"', ("cocoa.ttl", b"5"), ("cocoa.priority", b"low")).options == Options("low", 5)
        assert reason_for('"device_id":"d"', ("cocoa.ttl", b"-5")) == "ttl"


def test_headers_count_for_a_record_of_any_kind() -> None:
    for members in ('"device_id":"d"', '"device_id":"d","o":{"a":[1]}', '"device_id":"d","t":"\\n"'):
        found = decoded(members, ("trace", b"t"), ("cocoa.to", b'{"group":"red"}'), ("cocoa.priority", b"low"))
        assert found == decoded(members)._replace(address=Group("red"), options=Options(priority="low"))


# -- the whole record


def test_of_several_invalid_fields_the_first_is_the_reason() -> None:
    bad = [(field, f'"{field}":"{"k" * 65}"') for field in FIELDS[:-1]]
    for first in range(len(bad)):
        members = ",".join(text for _, text in reversed(bad[first:]))
        assert reason_for(members, ("cocoa.id", b"5")) == FIELDS[first]


def test_what_is_no_record_is_named_before_its_headers_are() -> None:
    headers = [("cocoa.to", b"5")]
    for value, reason in ((b"", "empty"), (b"[]", "not_object"), (b"{", "not_json"), (b"\xff", "not_utf8")):
        assert decode(None, value, 0, headers) == Rejected(reason)
    assert decode(None, None, 0, [("cocoa.to", b'{"all":true}')]) == Rejected("empty")
    assert reason_for('"device_id":5', *headers) == "to"


def test_a_hypothesis_and_a_key_are_judged_as_in_any_record() -> None:
    assert decoded('"to":{"group":"red"},"final":false,"session_id":"s"').interim_of == "s"
    for key, agrees in ((b"a", True), (b"s", True), (b"d", False), (None, True)):
        found = decode(key, b'{"to":{"device":"a"},"device_id":"d","session_id":"s"}', 0)
        assert isinstance(found, Record)
        assert found.key_agrees is agrees
    found = decode(b"anything", b'{"to":{"group":"red"},"device_id":"d"}', 0)
    assert isinstance(found, Record)
    assert found.key_agrees


# -- how long


def test_a_ttl_counts_from_the_records_timestamp_and_has_passed_only_after_its_end() -> None:
    minute = Options(ttl_s=60)
    assert minute.expires_ms(1_000, 5_000) == 61_000
    assert minute.expires_ms(1_000, 10**13) == 61_000


def test_a_ttl_counts_from_reading_where_the_timestamp_is_absent_or_in_the_future() -> None:
    minute = Options(ttl_s=60)
    assert minute.expires_ms(0, 1_000_000.7) == 1_060_000
    assert minute.expires_ms(2_000_000, 1_000_000) == 1_060_000


def test_a_message_has_expired_only_after_its_deadline() -> None:
    assert not Terms(expires_ms=1000).has_expired(1000.0)
    assert Terms(expires_ms=1000).has_expired(1000.5)
    assert not Terms().has_expired(10.0**15)


def test_what_has_no_ttl_or_is_for_now_only_never_expires_before_it_is_routed() -> None:
    assert Options(priority="low").expires_ms(1, 10**15) == 0
    assert Options(ttl_s=0).expires_ms(1, 10**15) == 0
    assert Options(ttl_s=MAX_TTL_S).expires_ms(1, 10**14) == MAX_TTL_S * 1000 + 1


# -- any record, against a reader that shares no code


class Pairs(list[tuple[str, Any]]):
    """An object, as it stands."""


class Int(str):
    """An integer's spelling."""


class Float(str):
    """Any other number's spelling."""


def refuse(spelling: str) -> object:
    raise ValueError(spelling)


def read(text: str) -> Any:
    return json.loads(text, object_pairs_hook=Pairs, parse_int=Int, parse_float=Float, parse_constant=refuse)


def is_string(value: Any, shortest: int, longest: int, allowed: str) -> bool:
    """By bytes of UTF-8 and by what each character may be."""
    if type(value) is not str or re.search("[\ud800-\udfff]", value):
        return False
    return shortest <= len(value.encode()) <= longest and re.fullmatch(allowed, value, re.DOTALL) is not None


def is_name(value: Any) -> bool:
    return is_string(value, 1, 128, "[^\x00-\x1f\x7f-\x9f]*")


def are_names(value: Any, fewest: int) -> bool:
    return type(value) is list and fewest <= len(value) <= 1_000 and all(is_name(name) for name in value)


def expected_address(given: dict[str, Any]) -> Address | None:
    match given.get("to"):
        case None:
            return None
        case [("device", name)] if is_name(name):
            address: Address = name
        case [("devices", found)] if are_names(found, 1):
            address = found[0] if len(set(found)) == 1 else Devices(tuple(sorted(set(found), key=found.index)))
        case [("user", Int() as number)]:
            address = User(int(number))
        case [("user", name)] if is_string(name, 0, 10**9, ".*"):
            address = User(name)
        case [("group", name)] if is_name(name):
            address = Group(name)
        case [("all", True)]:
            address = Everyone()
        case _:
            raise ValueError("to")
    return address


def expected_exception(given: dict[str, Any], address: Address | None) -> Address | None:
    match given.get("except"), address:
        case None, _:
            return address
        case [("devices", found)], User(user_id) if are_names(found, 0):
            return User(user_id, frozenset(found))
        case [("devices", found)], Group(name) if are_names(found, 0):
            return Group(name, frozenset(found))
        case [("devices", found)], Everyone() if are_names(found, 0):
            return Everyone(frozenset(found))
    raise ValueError("except")


def expected_options(given: dict[str, Any]) -> Options | None:
    priority, ttl, key, name = (given.get(field) for field in FIELDS[2:])
    if priority not in (None, "high", "normal", "low"):
        raise ValueError("priority")
    if ttl is not None and not (isinstance(ttl, Int) and int(ttl) >= 0):
        raise ValueError("ttl")
    if key is not None and not is_string(key, 1, 64, ".*"):
        raise ValueError("collapse_key")
    if name is not None and not is_string(name, 1, 64, ".*"):
        raise ValueError("id")
    found = Options(priority or "normal", None if ttl is None else int(ttl), key, name)
    return None if found == ("normal", None, None, None) else found


def header_value(raw: bytes | None) -> Any:
    if raw is None:
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return Pairs([("no", "text")])  # which no field may be
    try:
        return read(text)
    except ValueError:
        return text


def expected(value: str, headers: Sequence[Header]) -> Record | Rejected:
    """By the letter of contract section 8. Of the message, only what names stand in it, in their order."""
    pairs = read(value)
    given, kept = {}, [name for name, _ in pairs if name != "type"]
    for field in FIELDS:
        in_headers = [header_value(raw) for name, raw in headers if name == f"cocoa.{field}"]
        in_value = [found for name, found in pairs if name == field]
        overrides = len(in_headers) > 1 or (in_headers and in_headers[0] is not None)
        standing = in_headers if overrides else in_value
        if field == "id" and not overrides and not any(is_string(found, 1, 64, ".*") for found in standing):
            continue
        if overrides or field != "id":
            kept = [name for name in kept if name != field]
        given[field] = standing[0] if len(standing) == 1 else Pairs([("stands", "twice")]) if standing else None
        if field == "id" and overrides:
            kept.append("id")
    try:
        address = expected_exception(given, expected_address(given))
        options = expected_options(given)
    except ValueError as invalid:
        return Rejected(str(invalid))
    if address is None:
        if not is_name(dict(pairs).get("device_id")):
            return Rejected("no_device")
        address = dict(pairs)["device_id"]
    return Record(address, ",".join(dict.fromkeys(kept)).encode(), 7, True, "", options)


TO = [
    *('{"device":"a"}', '{"device":"b\\u0062"}', '{"device":""}', '{"device":5}', '{"device":"\\ud800"}'),
    *('{"devices":["a","b","a"]}', '{"devices":["a"]}', '{"devices":[]}', '{"devices":[1]}', '{"devices":"a"}'),
    *('{"user":99}', '{"user":"99"}', '{"user":99.0}', '{"user":1e2}', '{"user":-1}', '{"user":true}', '{"user":""}'),
    *('{"group":"red"}', '{"group":""}', '{"group":"\\n"}', '{"all":true}', '{"all":false}', '{"all":true,"x":1}'),
    *('{"device":"a","user":1}', '{"device":"a","device":"a"}', '{"device":"a","user":null}', "{}", "[]", '"a"'),
]
EXCEPT = [
    *('{"devices":["a","c"]}', '{"devices":[]}', '{"devices":[""]}', '{"devices":null}', '{"device":"a"}', "{}", "[]"),
    *('{"devices":["a"],"x":1}', '{"devices":["a"],"devices":[]}'),
]
VALUES = {
    "to": TO,
    "except": EXCEPT,
    "priority": ['"high"', '"low"', '"normal"', '"HIGH"', '""', "1", "high"],
    "ttl": ["0", "60", "-0", "-1", "1.0", "1e2", "true", '"60"', "999999999999"],
    "collapse_key": ['"k"', f'"{"k" * 64}"', f'"{"k" * 65}"', '""', "5", "k", '"\\ud83d\\ude00"', '"\\ud83d"'],
    "id": ['"i"', f'"{"ä" * 32}"', f'"{"ä" * 33}"', '""', "5", "i", "{}"],
}
VALID = {"to": TO[:2] + TO[5:7] + TO[10:12], "except": EXCEPT[:2]} | {name: VALUES[name][:2] for name in FIELDS[2:]}


@st.composite
def field(draw: st.DrawFn) -> tuple[str, str]:
    name = draw(st.sampled_from(FIELDS))
    values = draw(st.sampled_from([VALID, VALID, VALUES]))[name]
    return name, draw(st.sampled_from([*values, *values, "null"]))


@st.composite
def member(draw: st.DrawFn) -> tuple[str, str]:
    name, text = draw(field())
    return name, text if text not in ("high", "k", "i") else "null"  # which are JSON in no value


@st.composite
def header(draw: st.DrawFn) -> Header:
    name, text = draw(field())
    odd: list[bytes | None] = [None, b"", b"\xff", b"[[", b" 5 "]
    return f"cocoa.{name}", draw(st.sampled_from([text.encode()] * 9 + odd))


ORDINARY = st.sampled_from([("text", '"x"'), ("type", '"x"'), ("n", "1.50"), ("o", '{"to":1,"ttl":-1}')])
DEVICE = st.sampled_from([[("device_id", '"d"')]] * 4 + [[], [("device_id", "5")]])


@examples(600)
@given(
    DEVICE,
    st.lists(member(), max_size=4),
    st.lists(ORDINARY, max_size=2, unique=True),
    st.lists(header(), max_size=3),
    st.randoms(use_true_random=False),
)
@example([], [("to", '{"all":true}'), ("except", '{"devices":["a"]}')], [], [], None)
def test_any_record_is_addressed_as_a_second_reader_has_it(
    device: list[tuple[str, str]],
    members: list[tuple[str, str]],
    ordinary: list[tuple[str, str]],
    headers: list[Header],
    random: Any,
) -> None:
    pairs = [*device, *members, *ordinary]
    if random is not None:
        random.shuffle(pairs)
    value = "{" + ",".join(f'"{name}":{text}' for name, text in pairs) + "}"
    found = decode(None, value.encode(), 7, [("trace", b"t"), *headers])
    if isinstance(found, Record):
        sent = json.loads(found.payload)
        assert sent.pop("type") == "transcription"
        found = found._replace(payload=",".join(sent).encode())
    assert found == expected(value, headers)


@given(st.lists(st.tuples(st.sampled_from([f"cocoa.{name}" for name in FIELDS]), st.none() | st.binary() | st.text())))
def test_no_header_whatever_raises(headers: list[tuple[str, Any]]) -> None:
    pairs = [
        (name, value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value) for name, value in headers
    ]
    found = decode(None, b'{"device_id":"d"}', 0, pairs)
    assert isinstance(found, Record) or found.reason in FIELDS
