"""Whether a device's socket still takes bytes; and what the gateway reads of Tornado's private parts for it.

Two things move while a slow device reads: the bytes that the kernel has taken from Tornado's stream, and the bytes
that the device's own kernel has yet to acknowledge. ``IOStream`` keeps the first in ``_total_write_done_index`` (read
against Tornado 6.6.1; this file alone knows of it). Where neither can be seen, a write counts as progress only when
it is done as a whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import termios

from tornado.iostream import IOStream

UNSENT_BYTES_IN_KERNEL = 128 * 1024
"""More than this the kernel does not keep unsent for one device: what waits, waits in the outbox, which is bounded."""


def limit_kernel_buffer(stream: IOStream) -> None:
    """Bound what the kernel holds unsent for the stream, where the platform can (Linux, macOS)."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None and stream.socket is not None:
        with contextlib.suppress(OSError):
            stream.socket.setsockopt(socket.IPPROTO_TCP, option, UNSENT_BYTES_IN_KERNEL)


def write_mark(stream: IOStream) -> tuple[int, int]:
    """A value that changes whenever the other end has taken a byte."""
    taken: int = getattr(stream, "_total_write_done_index", 0)
    return taken, _unacknowledged_bytes(stream.socket)


def _unacknowledged_bytes(sock: socket.socket | None) -> int:
    if sock is None or not sys.platform.startswith("linux"):
        return 0
    try:
        # SIOCOUTQ in tcp(7), which has the same number.
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    except (OSError, ValueError):
        return 0
    return int(struct.unpack("i", answer)[0])


def half_close(stream: IOStream) -> None:
    """Tell the other end that nothing more comes, and go on reading. Over TLS there is no such thing: does nothing."""
    if stream.socket is not None and type(stream) is IOStream:
        with contextlib.suppress(OSError):
            stream.socket.shutdown(socket.SHUT_WR)


def write_progress_is_visible() -> bool:
    """Whether Tornado's part of :func:`write_mark` works; asked once at start. IOLoop thread."""
    ours, theirs = socket.socketpair()
    stream = IOStream(ours)
    try:
        return isinstance(getattr(stream, "_total_write_done_index", None), int)
    finally:
        stream.close()
        theirs.close()
