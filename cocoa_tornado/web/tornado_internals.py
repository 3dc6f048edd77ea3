"""What the gateway reads of Tornado's private parts. Read against Tornado 6.6.1; this file alone knows of them.

``IOStream`` keeps the number of bytes that the kernel has taken since the stream was made in
``_total_write_done_index``. It tells a slow socket (takes a little, again and again) from a dead one (takes nothing).
Without it a write counts as progress only when it is done as a whole.
"""

from __future__ import annotations

import socket

from tornado.iostream import IOStream


def bytes_taken(stream: IOStream) -> int:
    """Bytes that the kernel has taken from the stream so far; always 0 where Tornado does not tell."""
    taken: int = getattr(stream, "_total_write_done_index", 0)
    return taken


def write_progress_is_visible() -> bool:
    """Whether :func:`bytes_taken` works with the installed Tornado; asked once at start. IOLoop thread."""
    ours, theirs = socket.socketpair()
    stream = IOStream(ours)
    try:
        return isinstance(getattr(stream, "_total_write_done_index", None), int)
    finally:
        stream.close()
        theirs.close()
