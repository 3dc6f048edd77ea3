"""Chapter 7: how a connection ends."""

from __future__ import annotations

from typing import Final

from testing.raw_device import CLOSE

from .case import (
    FRAME_BY_FRAME,
    Case,
    Closed,
    Frame,
    Step,
    Strictness,
    Text,
    binary,
    close,
    last,
    ping,
    pong,
    text,
)
from .utf8 import GREEK, REST, SURROGATE

NORMAL: Final = (Closed(1000),)
FAILS: Final = (Closed(1002),)
HELLO: Final = "Hello World!"
LONG: Final = "BAsd7&jh23" * 26215  # 256 KiB and a little

# 1012 to 1014 were registered after the testsuite was written, and so were those in use today.
VALID: Final = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
REGISTERED_LATER: Final = (1012, 1013, 1014)
INVALID: Final = (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999)
INVALID_TOO: Final = (1, 1015)

CLOSES: Final = (
    Case("7.1.1", "a text, then a close", [Step([text(HELLO), close()], [Text(HELLO), *NORMAL])]),
    Case("7.1.2", "two closes", [Step([close(), close(None)], NORMAL)]),
    Case("7.1.3", "a ping after a close", [Step([close(), ping()], NORMAL)]),
    Case("7.1.4", "a text after a close", [Step([close(), text(HELLO)], NORMAL)]),
    Case(
        "7.1.5",
        "a close between two fragments",
        [Step([text("fragment1", fin=False), close(), last("fragment2")], NORMAL)],
    ),
    Case(
        "7.1.6",
        "256 KiB of text, a text, a close and a ping",
        [Step([text(LONG), text(HELLO), close(), ping()], [Text(LONG), Text(HELLO), *NORMAL])],
        Strictness.INFORMATIONAL,
    ),
    # RFC 6455, 7.1.5: a close without a code stands for 1005, which is never sent; the answer has none either.
    Case("7.3.1", "a close without payload", [Step([close(None)], [Closed(None)])]),
    Case("7.3.2", "a close of one byte", [Step([Frame(CLOSE, b"a")], FAILS)]),
    Case("7.3.3", "a close with a code", [Step([close()], NORMAL)]),
    Case("7.3.4", "a close with code and reason", [Step([close(1000, HELLO.encode())], NORMAL)]),
    Case("7.3.5", "a close with a reason of 123 bytes", [Step([close(1000, b"*" * 123)], NORMAL)]),
    Case("7.3.6", "a close with a reason of 124 bytes", [Step([close(1000, b"*" * 124)], FAILS)]),
    # The suite takes 1002 as well.
    Case(
        "7.5.1",
        "a close with a reason that is no UTF-8",
        [Step([close(1000, GREEK + SURROGATE + REST)], [Closed(1007)])],
        Strictness.NON_STRICT,
    ),
    # The suite takes 1000 as well.
    *(
        Case(f"7.7.{number}", f"a close with {code}", [Step([close(code)], [Closed(code)])], Strictness.NON_STRICT)
        for number, code in enumerate(VALID, 1)
    ),
    *(
        Case(f"7.9.{number}", f"a close with {code}, which is not valid", [Step([close(code)], FAILS)])
        for number, code in enumerate(INVALID, 1)
    ),
    # 7.4.2: codes from 5000 on are outside of all ranges, and what a server does with them is left open.
    *(
        Case(f"7.13.{number}", f"a close with {code}", [Step([close(code)], FAILS)], Strictness.INFORMATIONAL)
        for number, code in enumerate((5000, 65535), 1)
    ),
    *(
        Case(f"x7.{number}", f"a close with {code}", [Step([close(code)], [Closed(code)])], Strictness.NON_STRICT)
        for number, code in enumerate(REGISTERED_LATER, 1)
    ),
    *(
        Case(f"x7.{number}", f"a close with {code}, which is not valid", [Step([close(code)], FAILS)])
        for number, code in enumerate(INVALID_TOO, 4)
    ),
    Case("x7.6", "a close octet by octet", [Step([close(1001, b"bye")], [Closed(1001)])], chop=1),
    Case("x7.7", "a binary message and a pong after a close", [Step([close(), binary(b"x"), pong()], NORMAL)]),
    Case("x7.8", "an invalid frame after a close", [Step([close(), Frame(0x3, masked=False)], NORMAL)]),
    Case(
        "x7.9",
        "a close behind an invalid frame, frame by frame",
        [Step([Frame(0x3), close()], FAILS)],
        chop=FRAME_BY_FRAME,
    ),
    Case("x7.10", "a close after invalid text", [Step([text(SURROGATE), close()], [Closed(1007)])]),
    Case("x7.11", "a reason cut within a character", [Step([close(1000, "ä".encode()[:1])], [Closed(1007)])]),
)
