"""Chapter 6: text is UTF-8, or the connection fails with 1007, and at once.

The sequences of 6.5 to 6.23 are those of Markus Kuhn's UTF-8 decoder capability and stress test.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from testing.raw_device import TEXT

from .case import Case, Closed, Step, Strictness, Text, fragments, last, more, ping, text

FAILS: Final = (Closed(1007),)
GREEK: Final = bytes.fromhex("ceba e1bdb9 cf83 cebc ceb5")  # "kosme"; the omicron has an accent
BEYOND: Final = b"\xf4\x90\x80\x80"  # U+110000: wrong from its second byte on
SURROGATE: Final = b"\xed\xa0\x80"  # U+D800, likewise
REST: Final = b"edited"
UMLAUTS: Final = "Hello-µ@ßöäüàá-UTF-8!!".encode()


def _valid(payload: bytes) -> list[Step]:
    return [Step([text(payload)], [Text(payload.decode())])]


def _invalid(payload: bytes) -> list[Step]:
    return [Step([text(payload)], FAILS)]


def _octets(payload: bytes) -> list[bytes]:
    return [payload[at : at + 1] for at in range(len(payload))]


def _each(chapter: int, what: str, sequences: Iterable[bytes], *, valid: bool) -> Iterator[Case]:
    for number, sequence in enumerate(sequences, 1):
        steps = _valid(sequence) if valid else _invalid(sequence)
        yield Case(f"6.{chapter}.{number}", f"{what}: {sequence[:16].hex(' ')}", steps)


def _prefixes() -> Iterator[Case]:
    """Those that end between two characters are valid."""
    ends = {len(GREEK.decode()[:count].encode()) for count in range(1, 6)}
    for size in range(1, len(GREEK) + 1):
        steps = _valid(GREEK[:size]) if size in ends else _invalid(GREEK[:size])
        yield Case(f"6.6.{size}", f"the first {size} bytes of a valid text", steps)


def _hex(*sequences: str) -> list[bytes]:
    return [bytes.fromhex(sequence) for sequence in sequences]


def _followed_by_spaces(first: int, end: int) -> bytes:
    return b"".join(bytes([octet, 0x20]) for octet in range(first, end))


SHORTENED: Final = _hex(
    "c0", "e080", "f08080", "f8808080", "fc80808080", "df", "efbf", "f7bfbf", "fbbfbfbf", "fdbfbfbfbf"
)
STARTS: Final = ((0xC0, 0xE0), (0xE0, 0xF0), (0xF0, 0xF8), (0xF8, 0xFC), (0xFC, 0xFE))
NONCHARACTERS: Final = [chr(plane << 16 | end).encode() for plane in range(17) for end in (0xFFFE, 0xFFFF)]

SEQUENCES: Final = (
    *_each(
        5,
        "valid",
        (*(f"hello{sign}world".encode() for sign in "$¢€𤭢"), GREEK),
        valid=True,
    ),
    *_prefixes(),
    *_each(7, "the first code point of its length", _hex("00", "c280", "e0a080", "f0908080"), valid=True),
    *_each(8, "the first of 5 and 6 bytes", _hex("f888808080", "fc8480808080"), valid=False),
    *_each(9, "the last code point of its length", _hex("7f", "dfbf", "efbfbf", "f48fbfbf"), valid=True),
    *_each(10, "the last of 4, 5 and 6 bytes", _hex("f7bfbfbf", "fbbfbfbfbf", "fdbfbfbfbfbf"), valid=False),
    *_each(11, "at a boundary", _hex("ed9fbf", "ee8080", "efbfbd", "f48fbfbf"), valid=True),
    Case("6.11.5", "the first code point too many: f4 90 80 80", _invalid(BEYOND)),
    *_each(
        12,
        "continuation bytes alone",
        (*_hex("80", "bf", "80bf", "80bf80", "80bf80bf", "80bf80bf80", "80bf80bf80bf"), bytes(range(0x80, 0xC0))),
        valid=False,
    ),
    *_each(13, "first bytes alone", (_followed_by_spaces(*start) for start in STARTS), valid=False),
    *_each(14, "the last byte is missing", SHORTENED, valid=False),
    *_each(15, "incomplete sequences in a row", [b"".join(SHORTENED)], valid=False),
    *_each(16, "bytes that never occur", _hex("fe", "ff", "fefeffff"), valid=False),
    *_each(17, "an overlong slash", _hex("c0af", "e080af", "f08080af", "f8808080af", "fc80808080af"), valid=False),
    *_each(18, "the highest overlong", _hex("c1bf", "e09fbf", "f08fbfbf", "f887bfbfbf", "fc83bfbfbfbf"), valid=False),
    *_each(19, "an overlong NUL", _hex("c080", "e08080", "f0808080", "f880808080", "fc8080808080"), valid=False),
    *_each(
        20,
        "a surrogate",
        _hex("eda080", "edadbf", "edae80", "edafbf", "edb080", "edbe80", "edbfbf"),
        valid=False,
    ),
    *_each(
        21,
        "a pair of surrogates",
        (
            first + second
            for first in _hex("eda080", "edadbf", "edae80", "edafbf")
            for second in _hex("edb080", "edbfbf")
        ),
        valid=False,
    ),
    *_each(22, "a noncharacter, which is valid", NONCHARACTERS, valid=True),
    *_each(23, "a special", (chr(code).encode() for code in range(0xFFF9, 0x10000)), valid=True),
)


def _fails_fast(before: bytes, fault: bytes, after: bytes) -> list[Step]:
    """In three fragments: the second one has the fault, and the third is not waited for."""
    return [Step([text(before, fin=False)]), Step([more(fault)], FAILS), Step([last(after)])]


def _fails_fast_in_one_frame(before: bytes, fault: bytes, after: bytes) -> list[Step]:
    frame = text(before + fault + after).encode()
    first, second = 6 + len(before), 6 + len(before + fault)
    return [Step([frame[:first]]), Step([frame[first:second]], FAILS), Step([frame[second:]])]


_BEYOND: Final = (GREEK, BEYOND, REST)
_BEYOND_BY_OCTET: Final = (GREEK + BEYOND[:1], BEYOND[1:2], BEYOND[2:] + REST)
_SURROGATE_BY_OCTET: Final = (GREEK + SURROGATE[:1], SURROGATE[1:2], SURROGATE[2:] + REST)
_OVERLONG_BY_OCTET: Final = (GREEK + b"\xe0", b"\x9f", b"\xbf" + REST)

TEXTS: Final = (
    Case("6.1.1", "an empty text", _valid(b"")),
    Case("6.1.2", "a text of three empty fragments", [Step([text(fin=False), more(), last()], [Text("")])]),
    Case(
        "6.1.3",
        "a text of three fragments, of which the middle one has all",
        [Step([text(fin=False), more("middle frame payload"), last()], [Text("middle frame payload")])],
    ),
    Case("6.2.1", "a text with umlauts", _valid(UMLAUTS)),
    Case(
        "6.2.2",
        "the same in two fragments, cut between characters",
        [Step([text("Hello-µ@ßöä", fin=False), last("üàá-UTF-8!!")], [Text(UMLAUTS.decode())])],
    ),
    Case("6.2.3", "the same in fragments of one byte", [Step(fragments(TEXT, UMLAUTS, 1), [Text(UMLAUTS.decode())])]),
    Case("6.2.4", "Greek in fragments of one byte", [Step(fragments(TEXT, GREEK, 1), [Text(GREEK.decode())])]),
    Case("6.3.1", "a surrogate within a text", _invalid(GREEK + SURROGATE + REST)),
    Case("6.3.2", "the same in fragments of one byte", [Step(fragments(TEXT, GREEK + SURROGATE + REST, 1), FAILS)]),
    # RFC 6455, 8.1, demands that the connection fails; that it does so before the message has ended is what the suite
    # grades as strict.
    *(
        Case(number, title, steps, Strictness.NON_STRICT)
        for number, title, steps in (
            ("6.4.1", "U+110000 in the second fragment", _fails_fast(*_BEYOND)),
            ("6.4.2", "U+110000 up to its wrong byte", _fails_fast(*_BEYOND_BY_OCTET)),
            ("6.4.3", "U+110000 in the second chop of a frame", _fails_fast_in_one_frame(*_BEYOND)),
            (
                "6.4.4",
                "U+110000 up to its wrong byte, in chops of a frame",
                _fails_fast_in_one_frame(*_BEYOND_BY_OCTET),
            ),
            ("x6.1", "a surrogate up to its wrong byte", _fails_fast(*_SURROGATE_BY_OCTET)),
            (
                "x6.2",
                "a surrogate up to its wrong byte, in chops of a frame",
                _fails_fast_in_one_frame(*_SURROGATE_BY_OCTET),
            ),
            ("x6.3", "an overlong up to its wrong byte", _fails_fast(*_OVERLONG_BY_OCTET)),
            (
                "x6.4",
                "a ping behind half a surrogate is not answered",
                [Step([text(GREEK + SURROGATE[:2], fin=False), ping(b"late")], FAILS)],
            ),
        )
    ),
)
