"""Chapters 12 and 13: permessage-deflate (RFC 7692). The gateway accepts no extension, so nothing may be compressed.

The suite grades a server that negotiates none as UNIMPLEMENTED; here each offer must be declined, and leave a
connection that works without.
"""

from __future__ import annotations

import zlib
from typing import Final

from .case import Binary, Case, Closed, Step, Text, binary, text

DEFLATE: Final = "permessage-deflate"
PLAIN: Final = "Faust: Habe nun, ach! Philosophie, Juristerei und Medizin" * 20
OFFERS: Final = (
    f"{DEFLATE}; client_no_context_takeover; client_max_window_bits",
    f"{DEFLATE}; server_no_context_takeover; client_max_window_bits",
    f"{DEFLATE}; server_max_window_bits=9; client_max_window_bits",
    f"{DEFLATE}; server_max_window_bits=15; client_max_window_bits",
    f"{DEFLATE}; server_no_context_takeover; server_max_window_bits=9; client_max_window_bits",
    f"{DEFLATE}; server_no_context_takeover; server_max_window_bits=15; client_max_window_bits",
    f"{DEFLATE}; server_no_context_takeover; server_max_window_bits=9, {DEFLATE}",
)


def _compressed(data: bytes) -> bytes:
    """RFC 7692, 7.2.1."""
    deflate = zlib.compressobj(wbits=-15)
    return (deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


COMPRESSION: Final = (
    Case(
        "12.1.1", "a text that is not compressed, after an offer", [Step([text(PLAIN)], [Text(PLAIN)])], offers=DEFLATE
    ),
    Case(
        "12.2.1",
        "a binary message that is not compressed, after an offer",
        [Step([binary(bytes(1024))], [Binary(bytes(1024))])],
        offers=DEFLATE,
    ),
    Case(
        "x12.1",
        "a compressed text after an offer that was declined",
        [Step([text(_compressed(PLAIN.encode()), rsv=4)], [Closed(1002)])],
        offers=DEFLATE,
    ),
    Case(
        "x12.2",
        "a compressed binary message without an offer",
        [Step([binary(_compressed(b"x"), rsv=4)], [Closed(1002)])],
    ),
    *(
        Case(f"13.{number}", f"an offer is declined: {offer}", [Step([text("plain")], [Text("plain")])], offers=offer)
        for number, offer in enumerate(OFFERS, 1)
    ),
    Case(
        "x13.1",
        "offers of another extension and of the old name are declined",
        [Step([text("plain")], [Text("plain")])],
        offers="bbf-usp-protocol, x-webkit-deflate-frame",
    ),
)
