"""The table has the cases of the testsuite, and is right in itself."""

from __future__ import annotations

from collections import Counter

import pytest

from .case import Case, Closed, Event, Pong, Step, Text, agrees, chopped, close, fragments, ping, text
from .table import cases
from .utf8 import SEQUENCES

# How many cases each of the testsuite's groups has. Those of 12.1 to 12.5 differ in what is compressed: there is one
# here for text and one for binary messages, which are not.
PUBLISHED = """
    1.1:8 1.2:8 2:11 3:7 4.1:5 4.2:5 5:20 6.1:3 6.2:4 6.3:2 6.4:4 6.5:5 6.6:11 6.7:4 6.8:2 6.9:4 6.10:3 6.11:5 6.12:8
    6.13:5 6.14:10 6.15:1 6.16:3 6.17:5 6.18:5 6.19:5 6.20:7 6.21:8 6.22:34 6.23:7 7.1:6 7.3:6 7.5:1 7.7:13 7.9:9 7.13:2
    9.1:6 9.2:6 9.3:9 9.4:9 9.5:6 9.6:6 9.7:6 9.8:6 9.9:1 10.1:1 12.1:1 12.2:1 13:7
"""


def test_the_table_has_each_published_case_once_and_no_gap() -> None:
    published = {group: int(count) for group, _, count in (item.partition(":") for item in PUBLISHED.split())}
    ids = [case.id for case in cases()]
    assert len(set(ids)) == len(ids)
    groups = Counter(number.rpartition(".")[0] for number in ids if not number.startswith("x"))
    assert groups == published
    assert {f"{group}.{number}" for group, count in groups.items() for number in range(1, count + 1)} <= set(ids)


def test_what_the_table_takes_for_utf8_is_what_python_takes_for_it() -> None:
    for case in SEQUENCES:
        (step,) = case.steps
        (sent,) = step.sends
        assert not isinstance(sent, bytes)
        try:
            expected: list[Event] = [Text(sent.payload.decode())]
        except UnicodeDecodeError:
            expected = [Closed(1007)]
        assert list(step.then) == expected, case.id


@pytest.mark.parametrize(
    ("got", "right"),
    [
        ([Pong(b"1"), Text("x"), Pong(b"2")], True),
        ([Text("x"), Pong(b"2")], True),
        ([Pong(b"1"), Text("x")], False),
        ([Text("x"), Pong(b"1"), Pong(b"2")], True),
        ([Pong(b"2"), Pong(b"1"), Text("x")], False),
        ([Pong(b"1"), Text("x"), Pong(b"2"), Pong(b"2")], False),
        ([Pong(b"1"), Pong(b"2")], False),
        ([], False),
    ],
)
def test_only_the_latest_of_several_pings_must_be_answered(got: list[Event], right: bool) -> None:
    assert agrees([Pong(b"1"), Text("x"), Pong(b"2")], got) is right


def test_fragments_are_the_message() -> None:
    for size in (1, 2, 5, 6):
        frames = fragments(0x1, b"Hello", size)
        assert b"".join(frame.payload for frame in frames) == b"Hello"
        assert [frame.fin for frame in frames] == [False] * (len(frames) - 1) + [True]
        assert [frame.opcode for frame in frames] == [0x1] + [0x0] * (len(frames) - 1)


def test_a_case_is_chopped_as_it_says() -> None:
    frames = [text("Hello").encode(), ping().encode()]
    assert chopped(frames, None) == [b"".join(frames)]
    assert chopped(frames, 0) == frames
    assert [len(piece) for piece in chopped(frames, 7)] == [7, 7, 3]
    assert b"".join(chopped(frames, 1)) == b"".join(frames)


def test_a_report_names_the_case_and_what_was_expected_and_came() -> None:
    case = Case("7.3.3", "a close with a code", [Step([close()], [Closed(1000)])])
    assert case.report("over TCP", case.expected, [Text("x" * 9000), Closed(None)]) == (
        "7.3.3 [OK] a close with a code\n"
        "    over TCP\n"
        "    expected: closed with 1000\n"
        "    got:      text of 9000 characters 'xxxxxxxxxxxxxxxxxxxxxxxx', closed with no code"
    )
