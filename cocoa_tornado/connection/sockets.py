"""What the gateway asks of a device's socket beyond reading and writing: does it still take bytes, has its other end
closed; and what it uses of Tornado's private parts for that. They were read in Tornado 6.6.1, and only this file knows
of them.

Two things move while a slow device reads: the bytes that the kernel has taken from Tornado's stream, and the bytes
that the device's own kernel has yet to acknowledge. ``IOStream`` keeps the first in ``_total_write_done_index``. Where
neither can be seen, a write counts as progress only when it is done as a whole.

What ``IOStream`` has still to write is in ``_write_futures`` and ``_write_buffer._buffers``.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import termios
from collections import deque
from typing import Any

from tornado.iostream import IOStream, SSLIOStream

UNSENT_BYTES_IN_KERNEL = 128 * 1024
"""More than this the kernel does not keep unsent for one device: what waits, waits in the outbox, which is bounded."""

TCP_CLOSED = b"\x07"
TCP_CLOSED_BY_PEER = (b"\x07", b"\x08", b"\x09", b"\x0b")
"""First byte of ``struct tcp_info`` in tcp(7): closed, close-wait, last-ack, closing."""


def limit_kernel_buffer(stream: IOStream) -> None:
    """Bound what the kernel holds unsent for the stream, where the platform can (Linux, macOS)."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None and stream.socket is not None:
        with contextlib.suppress(OSError):
            stream.socket.setsockopt(socket.IPPROTO_TCP, option, UNSENT_BYTES_IN_KERNEL)


class ShortQueue(list[Any]):
    """In the place of a deque that hardly ever holds anything: an empty one takes 56 bytes, and a deque 760."""

    __slots__ = ()

    def popleft(self) -> Any:
        return self.pop(0)


def drop_room_for_writes(stream: IOStream) -> None:
    """Have an idle stream hold no memory for what it might write.

    Tornado keeps two deques in each stream. A stream that is busy with a write keeps them, and so does one of a Tornado
    that keeps something else.
    """
    for holder, name in ((stream, "_write_futures"), (getattr(stream, "_write_buffer", None), "_buffers")):
        queue = getattr(holder, name, None)
        if type(queue) is deque and not queue:
            setattr(holder, name, ShortQueue())


def keep_room_for_writes(stream: IOStream) -> None:
    """In the place of :func:`drop_room_for_writes`, where Tornado needs more than :class:`ShortQueue` has."""


def writes_without_room_work() -> bool:
    """Whether a stream writes after :func:`drop_room_for_writes`; asked once at start. IOLoop thread."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    stream = IOStream(ours)
    try:
        drop_room_for_writes(stream)
        is_written = stream.write(b"ping").done() and theirs.recv(8) == b"ping"
        # What the socket does not take goes through more of Tornado's code, and so does closing with it.
        stream.write(bytes(64 * 1024))
        stream.write(b"behind it")
        stream.close()
        return is_written
    except Exception:
        # Whatever it is that a Tornado of another make raises here, it would raise for every large message.
        return False
    finally:
        with contextlib.suppress(Exception):
            stream.close()
        theirs.close()


def write_mark(stream: IOStream) -> tuple[int, int]:
    """A value that changes whenever the other end has taken a byte."""
    taken: int = getattr(stream, "_total_write_done_index", 0)
    return taken, _unacknowledged_bytes(stream.socket)


def write_at_once(stream: IOStream, data: bytes) -> int:
    """Hand bytes straight to the socket, or to its TLS; returns how many it has taken.

    That is 0 where the stream is busy with others, and where only the stream itself can tell what is wrong with the
    socket. What is left is the stream's to write, and nothing else may be written before it.
    """
    if stream.writing() or stream.closed():
        return 0
    try:
        return stream.write_to_fd(memoryview(data))
    except OSError:
        return 0


def leave_to_stream(stream: IOStream, data: bytes) -> int:
    """In the place of :func:`write_at_once`, where Tornado does not let it work: the stream writes everything."""
    return 0


def direct_write_works() -> bool:
    """Whether :func:`write_at_once` does what it says with this Tornado; asked once at start. IOLoop thread."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    stream = IOStream(ours)
    try:
        return write_at_once(stream, b"ping") == 4 and theirs.recv(8) == b"ping" and not stream.closed()
    except Exception:
        # Whatever it is that a Tornado of another make raises here, it would raise for every message.
        return False
    finally:
        stream.close()
        theirs.close()


def all_is_acknowledged(stream: IOStream) -> bool:
    """Whether the other end's kernel has received all that was written; True where that can't be told."""
    return not stream.writing() and not _unacknowledged_bytes(stream.socket)


def may_have_unread(stream: IOStream) -> bool:
    """Whether the other end has sent something that nobody has looked at yet: it lies in the kernel, or has been read
    in this very turn. False where that can't be told."""
    if not stream.reading():
        return True
    if stream.socket is None:
        return False
    try:
        answer = fcntl.ioctl(stream.socket.fileno(), termios.FIONREAD, struct.pack("i", 0))
    except (OSError, ValueError):
        return False
    return bool(struct.unpack("i", answer)[0])


def _unacknowledged_bytes(sock: socket.socket | None) -> int:
    if sock is None or not sys.platform.startswith("linux"):
        return 0
    try:
        # SIOCOUTQ in tcp(7), which has the same number.
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    except (OSError, ValueError):
        return 0
    return int(struct.unpack("i", answer)[0])


def peer_has_closed(stream: IOStream) -> bool:
    """Whether the other end has sent its last byte, though not all may be read yet. False where that can't be told:
    only Linux shows it."""
    return _tcp_state(stream) in TCP_CLOSED_BY_PEER


def has_been_reset(stream: IOStream) -> bool:
    """Whether the connection is no more, in either direction; False where that can't be told."""
    return stream.closed() or _tcp_state(stream) == TCP_CLOSED


def _tcp_state(stream: IOStream) -> bytes:
    if stream.socket is None or not sys.platform.startswith("linux"):
        return b""
    try:
        return stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[:1]
    except (OSError, ValueError):
        return b""


def half_close(stream: IOStream) -> None:
    """Tell the other end that nothing more comes, and go on reading. Over TLS there is no such thing: does nothing."""
    if stream.socket is not None and not isinstance(stream, SSLIOStream):
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
