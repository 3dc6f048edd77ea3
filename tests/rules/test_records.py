"""Decoding a record: the bytes for the device, or the reason for rejecting it."""

from __future__ import annotations

import json
import sys
import threading
from random import Random
from typing import Any, NamedTuple, TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cocoa_tornado.rules import records
from cocoa_tornado.rules.addressing import FIELDS
from cocoa_tornado.rules.records import REASONS, Record, Rejected, decode, has_address

from ..profiles import examples

CANONICAL = (
    b'{"session_id":"a1b2c3d4e5f6g7h8","user_id":99,"device_id":"12312","text":"Hello",'
    b'"timestamp":"2024-01-15T10:30:00Z","success":true}'
)


def payload_of(value: bytes) -> str:
    decoded = decode(None, value, 0)
    assert isinstance(decoded, Record), decoded
    return decoded.payload.decode()


def reason_for(value: bytes | None, max_bytes: int = records.MAX_RECORD_BYTES) -> str:
    decoded = decode(None, value, 0, max_bytes=max_bytes)
    assert isinstance(decoded, Rejected), decoded
    assert decoded.reason in REASONS
    return decoded.reason


# -- the message to the device


def test_the_record_of_the_contract_becomes_the_message_of_the_contract() -> None:
    assert decode(b"12312", CANONICAL, 1705314600000) == Record(
        "12312",
        b'{"type":"transcription","session_id":"a1b2c3d4e5f6g7h8","user_id":99,"device_id":"12312","text":"Hello",'
        b'"timestamp":"2024-01-15T10:30:00Z","success":true}',
        1705314600000,
        True,
    )


def test_a_record_of_nothing_but_the_device_id_is_a_message() -> None:
    assert payload_of(b'{"device_id":"d"}') == '{"type":"transcription","device_id":"d"}'


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        pytest.param(b' {\t"device_id" :\r\n"d" , "l" : [ 1 , 2 ] } ', '"device_id":"d","l":[1,2]', id="blanks"),
        pytest.param(
            b'{"device_id":"d","o":{ "a" : { } , "b" : [ ] }}', '"device_id":"d","o":{"a":{},"b":[]}', id="nest"
        ),
        pytest.param(b'{"device_id":"d","t":" : , "}', '"device_id":"d","t":" : , "', id="blanks in a string stay"),
        pytest.param(b'{"device_id":"d","t":"\\u00e9\\/\\u4f60"}', '"device_id":"d","t":"é/你"', id="needless escapes"),
        pytest.param(b'{"device_id":"d","t":"\\ud83d\\ude00"}', '"device_id":"d","t":"😀"', id="surrogate pair"),
        pytest.param(
            b'{"device_id":"d","t":"\\u0022\\u005C\\u000A\\u001F\\u0008"}',
            r'"device_id":"d","t":"\"\\\n\u001f\b"',
            id="needed escapes, each in one spelling",
        ),
        pytest.param(
            b'{"device_id":"d","t":"\x7f\xe2\x80\xa8"}', '"device_id":"d","t":"\x7f\u2028"', id="needs no escape"
        ),
        pytest.param(b'{"device_id":"d","\\u0074":1}', '"device_id":"d","t":1', id="escapes in a name"),
        pytest.param(
            b'{"device_id":"d","success":false,"error":"no speech"}',
            '"device_id":"d","success":false,"error":"no speech"',
            id="error",
        ),
        pytest.param(b'{"new":{"deep":[null]},"device_id":"d"}', '"new":{"deep":[null]},"device_id":"d"', id="unknown"),
        pytest.param(b'{"device_id":"d","t":":","u":":"}', '"device_id":"d","t":":","u":":"', id="strings of colons"),
    ],
)
def test_what_the_device_gets_is_compact_and_escapes_only_what_json_requires(value: bytes, fields: str) -> None:
    assert payload_of(value) == f'{{"type":"transcription",{fields}}}'


@pytest.mark.parametrize(
    "spelling",
    [
        "0",
        "-0",
        "1.0",
        "1e400",
        "-1E+05",
        "1.10",
        "0.1e-7",
        "123456789012345678901234567890",
        "9" * 5000,
    ],
)
@pytest.mark.parametrize("around", ["%s", "[%s]", '{"n":%s}', '["\\n",%s]'])
def test_a_number_keeps_its_spelling(spelling: str, around: str) -> None:
    value = around % spelling
    assert payload_of(b'{"device_id":"d","n":%s}' % value.encode()) == (
        f'{{"type":"transcription","device_id":"d","n":{value}}}'
    )


@pytest.mark.parametrize(
    "value",
    [
        b'{"type":"x","device_id":"d","a":1}',
        b'{"device_id":"d","type":"x","a":1}',
        b'{"device_id":"d","a":1,"type":{"type":[1]}}',
        b'{"device_id":"d","a":1,"\\u0074ype":"x"}',
        b'{"type":1,"device_id":"d","type":2,"a":1,"typ\\u0065":3}',
    ],
)
def test_a_type_in_the_record_is_replaced_wherever_and_however_it_stands(value: bytes) -> None:
    assert payload_of(value) == '{"type":"transcription","device_id":"d","a":1}'


def test_a_type_in_a_nested_object_is_kept() -> None:
    nested = '"device_id":"d","words":[{"type":"noun"}],"o":{"type":1}'
    assert payload_of(f"{{{nested}}}".encode()) == f'{{"type":"transcription",{nested}}}'


def test_where_a_name_repeats_the_last_value_stands_in_the_place_of_the_first() -> None:
    assert payload_of(b'{"a":1,"device_id":"d","a":2}') == '{"type":"transcription","a":2,"device_id":"d"}'
    assert payload_of(b'{"o":{"b":1,"c":2,"\\u0062":3},"device_id":"d"}') == (
        '{"type":"transcription","o":{"b":3,"c":2},"device_id":"d"}'
    )


# -- who it is for


def test_the_device_id_of_the_value_decides_whatever_the_key() -> None:
    decoded = decode(b"other", CANONICAL, 0)
    assert isinstance(decoded, Record)
    assert decoded.address == "12312"


@pytest.mark.parametrize(
    ("key", "agrees"),
    [
        (None, True),
        (b"12312", True),
        (b"a1b2c3d4e5f6g7h8", True),
        (b"123", False),
        (b"", False),
        (b"\xff", False),
    ],
)
def test_a_key_agrees_if_it_is_absent_or_the_device_id_or_the_session_id(key: bytes | None, agrees: bool) -> None:
    decoded = decode(key, CANONICAL, 0)
    assert isinstance(decoded, Record)
    assert decoded.key_agrees is agrees


def test_a_session_id_that_is_no_string_agrees_with_no_key() -> None:
    assert decode(b"5", b'{"session_id":5,"device_id":"d"}', 0) == Record(
        "d", b'{"type":"transcription","session_id":5,"device_id":"d"}', 0, False
    )


def test_an_id_beyond_ascii_agrees_with_a_key_of_its_utf8() -> None:
    decoded = decode("pärla".encode(), b'{"device_id":"p\\u00e4rla"}', 0)
    assert isinstance(decoded, Record)
    assert decoded.address == "pärla"
    assert decoded.key_agrees


def test_a_negative_timestamp_means_none() -> None:
    assert decode(None, CANONICAL, -1) == decode(None, CANONICAL, 0)


@pytest.mark.parametrize("device_id", ["d" * 128, "ä" * 64, "😀" * 32, " ", "../x", "a b", "\u2028"])
def test_a_device_id_of_up_to_128_bytes_without_control_characters_is_taken_exactly(device_id: str) -> None:
    decoded = decode(None, json.dumps({"device_id": device_id}).encode(), 0)
    assert isinstance(decoded, Record)
    assert decoded.address == device_id


# -- rejected records


@pytest.mark.parametrize("value", [None, b""])
def test_no_value_is_empty(value: bytes | None) -> None:
    assert reason_for(value) == "empty"


def test_a_value_over_the_limit_is_too_large_and_one_at_the_limit_is_not() -> None:
    assert reason_for(CANONICAL, max_bytes=len(CANONICAL) - 1) == "too_large"
    assert isinstance(decode(None, CANONICAL, 0, max_bytes=len(CANONICAL)), Record)
    assert reason_for(b'{"device_id":"d"}' + b" " * records.MAX_RECORD_BYTES) == "too_large"


@pytest.mark.parametrize(
    "value",
    [
        b'{"device_id":"d","t":"\xff"}',
        b'{"device_id":"d","t":"\xed\xa0\x80"}',
        b'{"device_id":"\xc0\xaf"}',
        '{"device_id":"d"}'.encode("utf-16"),
    ],
)
def test_bytes_that_are_no_utf8_are_not_utf8(value: bytes) -> None:
    assert reason_for(value) == "not_utf8"


@pytest.mark.parametrize(
    "value",
    [
        " ",
        "{",
        "device_id",
        '{"device_id":"d"} x',
        '{"device_id":"d"}{}',
        '{"device_id":"d"}\0',
        '{"device_id":"d",}',
        '{"device_id":"d","n":NaN}',
        '{"device_id":"d","n":[-Infinity]}',
        '{"device_id":"d","n":{"n":Infinity}}',
        '{"device_id":"d","n":01}',
        '{"device_id":"d","n":+1}',
        '{"device_id":"d","n":1.}',
        '{"device_id":"d","n":.5}',
        '{"device_id":"d","n":-}',
        '{"device_id":"d","n":٣}',
        '{"device_id":"d","t":"\n"}',
        '{"device_id":"d","t":"\\x41"}',
        '{"device_id":"d","t":"\\u12g4"}',
        '{"device_id":"d","t":"\\u+123"}',
        "{'device_id':'d'}",
        '{"device_id":"d" /* why */}',
        '\x0b{"device_id":"d"}',
        '\u00a0{"device_id":"d"}',
        '\ufeff{"device_id":"d"}',
    ],
)
def test_what_rfc_8259_does_not_allow_is_not_json(value: str) -> None:
    assert reason_for(value.encode()) == "not_json"


def test_utf16_without_a_byte_order_mark_is_not_json() -> None:
    assert reason_for('{"device_id":"d"}'.encode("utf-16-le")) == "not_json"


@pytest.mark.parametrize("value", [b"[]", b'[{"device_id":"d"}]', b'"device_id"', b"1", b"null", b"true"])
def test_json_that_is_no_object_is_not_object(value: bytes) -> None:
    assert reason_for(value) == "not_object"


@pytest.mark.parametrize(
    "fields",
    [
        "",
        '"device":"d"',
        '"Device_id":"d"',
        '"o":{"device_id":"d"}',
        '"device_id":12312',
        '"device_id":null',
        '"device_id":["d"]',
        '"device_id":""',
        f'"device_id":"{"d" * 129}"',
        f'"device_id":"{"ä" * 65}"',
        '"device_id":"a\\nb"',
        '"device_id":"a\x7fb"',
        '"device_id":"a\u0085b"',
        '"device_id":"\\ud800"',
    ],
)
def test_a_record_that_names_no_device_as_the_contract_wants_it_is_no_device(fields: str) -> None:
    assert reason_for(f"{{{fields}}}".encode()) == "no_device"


@pytest.mark.parametrize(
    "value",
    [
        b'{"device_id":"a","device_id":"b"}',
        b'{"device_id":"a","device_id":"a"}',
        b'{"device_id":"a","t":"x","device\\u005fid":"b"}',
        b'{"device_id":5,"device_id":"b"}',
    ],
)
def test_two_device_ids_are_ambiguous_however_they_are_spelled(value: bytes) -> None:
    assert reason_for(value) == "duplicate_device"


def test_two_device_ids_in_a_nested_object_are_only_its_own_affair() -> None:
    assert payload_of(b'{"device_id":"d","o":{"device_id":"a","device_id":"b"}}') == (
        '{"type":"transcription","device_id":"d","o":{"device_id":"b"}}'
    )


@pytest.mark.parametrize("text", ["\\ud800", "a\\udc00", "\\ud83dx", "\\ude00\\ud83d"])
@pytest.mark.parametrize("around", ['"t":"%s"', '"%s":1', '"o":{"l":["%s"]}'])
def test_half_a_surrogate_pair_cannot_be_sent(around: str, text: str) -> None:
    assert reason_for(b'{"device_id":"d",%s}' % (around % text).encode()) == "not_unicode"


def test_what_is_dropped_is_not_judged() -> None:
    assert payload_of(b'{"device_id":"d","type":"\\ud800"}') == '{"type":"transcription","device_id":"d"}'


def nested(depth: int, opening: str, closing: str) -> bytes:
    """A record in which objects and arrays stand ``depth`` deep, itself included."""
    return f'{{"device_id":"d","n":{opening * (depth - 1)}1{closing * (depth - 1)}}}'.encode()


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"n":', "}")])
def test_64_levels_pass_and_65_are_too_deep(opening: str, closing: str) -> None:
    assert payload_of(nested(64, opening, closing)).startswith('{"type":"transcription","device_id":"d","n":')
    assert reason_for(nested(65, opening, closing)) == "too_deep"
    assert reason_for(nested(50_000, opening, closing)) == "too_deep"


def test_64_levels_pass_however_many_stand_side_by_side() -> None:
    beside = nested(64, "[", "]")[:-1] + b',"m":[[],[],[]]}'
    assert payload_of(beside).endswith(',"m":[[],[],[]]}')


def test_brackets_in_a_string_without_an_end_are_not_deep() -> None:
    assert reason_for(b'{"device_id":"' + b"[" * 100) == "not_json"
    assert reason_for(b'{"device_id":"' + b'\\"' * 500_000) == "not_json"


def test_brackets_that_nest_not_or_stand_in_strings_are_not_deep() -> None:
    for wide in ("[" + ",".join(["[]", "{}"] * 100) + "]", '"' + "[{" * 100 + '"', '"\\"' + "[" * 100 + '\\\\"'):
        compact = f'"device_id":"d","n":{wide}'
        assert payload_of(f"{{{compact}}}".encode()) == f'{{"type":"transcription",{compact}}}'


@pytest.mark.parametrize("value", [b"[" * 100_000, b'{"n":' * 100_000, b"[" * 70 + b"]" * 70])
def test_depth_is_judged_before_anything_that_a_parser_could_say(value: bytes) -> None:
    assert reason_for(value) == "too_deep"


def test_a_caller_deep_in_its_stack_gets_an_answer_too() -> None:
    value = nested(64, "[", "]")

    def at_depth(levels: int) -> object:
        return at_depth(levels - 1) if levels else decode(None, value, 0)

    answers = set()
    for levels in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit()):
        try:
            answers.add(at_depth(levels))
        except RecursionError:  # no room even for the call of decode
            break
    assert answers == {decode(None, value, 0), Rejected("too_deep")}


def test_a_record_that_fails_on_two_counts_is_named_by_the_first() -> None:
    assert reason_for(b'{"device_id":5,"device_id":"\\ud800"}') == "duplicate_device"
    assert reason_for(b'{"device_id":5,"t":"\\ud800"}') == "no_device"
    assert reason_for(b'["\\ud800"]') == "not_object"
    assert reason_for(b"\xff" * 10, max_bytes=9) == "too_large"


def test_threads_may_share_it() -> None:
    value = json.dumps({"device_id": "d", "words": [{"w": "é", "t": 1.50}] * 20}).encode()
    expected = decode(None, value, 0)
    answers: list[set[object]] = []

    def work() -> None:
        answers.append({decode(None, value, 0) for _ in range(300)})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [{expected}] * 4


# -- whether it is addressed


@pytest.mark.parametrize(
    "fields",
    [
        '"to":{"group":"red"}',
        '"to":{"device":"d"}',
        '"to":5',
        '"except":[]',
        '"to":null,"to":5',
        '"t\\u006f":{"all":true}',
        '"device_id":"e","ttl":-1,"to":{}',
        '"t":"\\ud800","except":""',
    ],
)
def test_a_value_that_holds_to_or_except_has_an_address_valid_or_not(fields: str) -> None:
    assert has_address(f'{{"device_id":"d",{fields}}}'.encode())


@pytest.mark.parametrize(
    "value",
    [
        b'{"device_id":"d"}',
        b'{"device_id":"d","to":null,"except":null}',
        b'{"device_id":"d","to":null,"to":null}',
        b'{"device_id":"d","text":"to","o":{"to":1,"except":2}}',
        b'{"device_id":"d","text":"\\"to\\":1"}',
        b'{"device_id":"d","TO":1}',
        b'["to"]',
        b'"to"',
        b'{"to":1',
        b'\xff"to"',
        b'{"to":' + b"[" * 70 + b"]" * 70 + b"}",
        b"",
    ],
)
def test_any_other_value_has_none(value: bytes) -> None:
    assert not has_address(value)


# -- any record, in any spelling, against an oracle that shares no code


class Number(NamedTuple):
    spelling: str


class Object(NamedTuple):
    pairs: list[tuple[str, Any]]


Value: TypeAlias = Any
"""None, a bool, a str, a Number, a list of values, or an Object."""

NAMES = st.sampled_from(["a", "type", "device_id", "session_id", "text", "", ":", 'q"', "\\", "é", "\n"]) | st.text()
TEXTS = st.text(max_size=12) | st.text('":,{}[]\\/\b\f\n\r\t\x00\x1f\x7f é😀\u2028', max_size=12)
NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,9})?([eE][+-]?[0-9]{1,4})?", fullmatch=True).map(Number)
VALUES = st.recursive(
    st.none() | st.booleans() | TEXTS | NUMBERS,
    lambda inner: st.lists(inner, max_size=4) | st.lists(st.tuples(NAMES, inner), max_size=4).map(Object),
    max_leaves=12,
)
IDS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=32)


@st.composite
def records_with_a_device(draw: st.DrawFn) -> Object:
    others = draw(
        st.lists(st.tuples(NAMES.filter(lambda name: name not in {"device_id", *FIELDS}), VALUES), max_size=6)
    )
    at = draw(st.integers(0, len(others)))
    return Object([*others[:at], ("device_id", draw(IDS)), *others[at:]])


SHORT = {"\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


def expected_text(value: Value) -> str:
    """The one right spelling of a value."""
    if isinstance(value, Number):
        return value.spelling
    if isinstance(value, Object):
        last = dict(value.pairs)
        return "{" + ",".join(f"{expected_text(name)}:{expected_text(last[name])}" for name in last) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(expected_text, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(SHORT.get(c, f"\\u{ord(c):04x}" if c < " " else c) for c in value) + '"'
    return {None: "null", True: "true", False: "false"}[value]


def any_character(character: str, random: Random, escapes: float) -> str:
    units = character.encode("utf-16-be")
    if random.random() < escapes:
        form = random.choice(["\\u{:04x}", "\\u{:04X}"])
        return "".join(form.format(int.from_bytes(units[at : at + 2], "big")) for at in range(0, len(units), 2))
    if character in SHORT:
        return SHORT[character]
    if character < " ":
        return f"\\u{ord(character):04X}"
    return "\\/" if character == "/" and random.random() < escapes else character


def any_text(value: Value, random: Random, escapes: float) -> str:
    """One of the many spellings of a value."""

    def blank() -> str:
        return random.choice(["", "", "", " ", "\n", "\t", "\r\n  "])

    def joined(parts: list[str]) -> str:
        return ",".join(blank() + part + blank() for part in parts) or blank()

    if isinstance(value, Object):
        pairs = [
            f"{any_text(name, random, escapes)}{blank()}:{blank()}{any_text(inner, random, escapes)}"
            for name, inner in value.pairs
        ]
        return "{" + joined(pairs) + "}"
    if isinstance(value, list):
        return "[" + joined([any_text(inner, random, escapes) for inner in value]) + "]"
    if isinstance(value, str):
        return '"' + "".join(any_character(c, random, escapes) for c in value) + '"'
    return expected_text(value)


@given(records_with_a_device(), st.randoms(use_true_random=False), st.sampled_from([0.0, 0.0, 0.3, 1.0]))
def test_any_spelling_of_a_record_gives_the_one_right_message(record: Object, random: Random, escapes: float) -> None:
    fields = [("type", "transcription"), *((name, value) for name, value in record.pairs if name != "type")]
    text = any_text(record, random, escapes) + random.choice(["", "\n"])
    device_id = dict(record.pairs)["device_id"]
    expected = Record(device_id, expected_text(Object(fields)).encode(), 7, True)
    assert decode(device_id.encode(), text.encode(), 7)[:4] == expected[:4]
    careful = records._decode_any(device_id.encode(), text.encode(), 7, {})
    assert careful[:4] == expected[:4]


TOKENS = [
    *('"a"', '"device_id"', '"device_id":"d"', '"type"', '":"', '"b":1', "true", "null", "NaN", ".5", "e9"),
    *("\\u0041", "\\ud83d", "\\ude00", *'{}[]:," \n\\10-é\x00'),
]
SOUP = st.lists(st.sampled_from(TOKENS), max_size=24).map("".join)
NEARLY = SOUP.map(lambda soup: f'{{"device_id":"d",{soup}}}')


@examples(200)
@given(SOUP | NEARLY | st.text())
@example('{"device_id":"d","t":":"}')
@example('{"device_id":"d","o":{"a":1}}')
@example('{"device_id":"d","a":1,"a":2}')
@example('{"device_id":"d","to":null}')
@example('{"device_id":"d","except":null}')
@example('{"device_id":"d","priority":null}')
@example('{"device_id":"d","ttl":1}')
@example('{"device_id":"d","collapse_key":"k"}')
@example('{"device_id":"d","id":"i"}')
def test_the_two_ways_agree_wherever_the_quick_one_has_an_answer(text: str) -> None:
    quick = records._decode_plain(None, text.encode(), 0)
    assert quick is None or quick == records._decode_any(None, text.encode(), 0, {})


def test_the_quick_way_is_the_way_of_ordinary_records() -> None:
    for text in (
        CANONICAL.decode(),
        json.dumps(json.loads(CANONICAL)),
        '{"device_id":"d","text":"你好","words":["a"]}',
    ):
        assert records._decode_plain(None, text.encode(), 0) is not None


NOT_JSON = object()


def judge(text: str) -> object:
    """What the standard library makes of a text; an object as its pairs."""

    def refuse(spelling: str) -> object:
        raise ValueError(spelling)

    try:
        return json.loads(text, object_pairs_hook=Object, parse_constant=refuse)
    except ValueError:
        return NOT_JSON


@examples(200)
@given(SOUP | NEARLY)
def test_a_record_is_json_for_us_exactly_if_it_is_json(text: str) -> None:
    decoded = decode(None, text.encode(), 0)
    parsed = judge(text)
    if isinstance(decoded, Record):
        assert isinstance(parsed, Object)
        message = json.loads(decoded.payload)
        assert message.pop("type") == "transcription"
        assert message == {name: value for name, value in json.loads(text).items() if name != "type"}
    elif decoded.reason in ("not_json", "empty"):
        assert parsed is NOT_JSON
    else:
        assert parsed is not NOT_JSON
        assert isinstance(parsed, Object) is (decoded.reason != "not_object")


@given(st.none() | st.binary(), st.none() | st.binary() | SOUP.map(str.encode), st.integers(-(2**63), 2**63 - 1))
def test_it_never_raises_and_every_reason_is_listed(key: bytes | None, value: bytes | None, timestamp_ms: int) -> None:
    decoded = decode(key, value, timestamp_ms)
    assert isinstance(decoded, Record) or decoded.reason in REASONS


@given(st.data())
def test_a_record_damaged_in_transit_never_raises(data: st.DataObject) -> None:
    value = bytearray(CANONICAL)
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    decoded = decode(b"12312", bytes(value), 0)
    assert isinstance(decoded, Record) or decoded.reason in REASONS


@pytest.mark.parametrize(
    ("fields", "interim_of"),
    [
        ('"final":false,"session_id":"s1"', "s1"),
        ('"session_id":"s1","final":false,"nested":{"final":true}', "s1"),
        ('"final":true,"session_id":"s1"', ""),
        ('"session_id":"s1"', ""),
        ('"final":0,"session_id":"s1"', ""),
        ('"final":"false","session_id":"s1"', ""),
        ('"final":false', ""),
        ('"final":false,"session_id":7', ""),
    ],
)
def test_a_record_that_is_not_final_is_a_hypothesis_of_its_session(fields: str, interim_of: str) -> None:
    delivery = decode(None, f'{{"device_id":"d",{fields}}}'.encode(), 0)
    assert isinstance(delivery, Record)
    assert delivery.interim_of == interim_of
