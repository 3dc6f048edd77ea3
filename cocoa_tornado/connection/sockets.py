"""TCP sockets beyond reading and writing: options, unacknowledged and unread bytes, and the state of the peer."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import termios

UNSENT_BYTES_IN_KERNEL = 128 * 1024
"""The kernel keeps at most this much unsent for one device. More waits in the outbox, which is bounded."""

TUNING = [
    (getattr(socket, name), value)
    for name, value in (("TCP_NODELAY", 1), ("TCP_NOTSENT_LOWAT", UNSENT_BYTES_IN_KERNEL))
    if hasattr(socket, name)
]

TCP_CLOSED = b"\x07"
TCP_CLOSED_BY_PEER = (b"\x07", b"\x08", b"\x09", b"\x0b")
"""First byte of ``struct tcp_info`` in tcp(7): closed, close-wait, last-ack, closing."""


def tune_for_messages(sock: socket.socket) -> None:
    """Send each message at once, and bound what the kernel holds unsent, where the platform can (Linux, macOS)."""
    with contextlib.suppress(OSError):
        for option, value in TUNING:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def unread_bytes(sock: socket.socket) -> int:
    """How many received bytes are unread. 0 if the platform cannot tell."""
    return _asked(sock, termios.FIONREAD)


def unacknowledged_bytes(sock: socket.socket | None) -> int:
    """How many written bytes the peer's kernel has not acknowledged. 0 if the platform cannot tell."""
    if sock is None or not sys.platform.startswith("linux"):
        return 0
    # SIOCOUTQ in tcp(7), which has the same number.
    return _asked(sock, termios.TIOCOUTQ)


def _asked(sock: socket.socket, question: int) -> int:
    try:
        answer = fcntl.ioctl(sock.fileno(), question, struct.pack("i", 0))
    except (OSError, ValueError):
        return 0
    return int(struct.unpack("i", answer)[0])


def peer_has_closed(sock: socket.socket | None) -> bool:
    """Whether the peer has sent its last byte, which may be unread. False if the platform cannot tell; Linux can."""
    return _tcp_state(sock) in TCP_CLOSED_BY_PEER


def has_been_reset(sock: socket.socket | None) -> bool:
    """Whether the connection has ended in both directions. False if the platform cannot tell."""
    return _tcp_state(sock) == TCP_CLOSED


def _tcp_state(sock: socket.socket | None) -> bytes:
    if sock is None or not sys.platform.startswith("linux"):
        return b""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[:1]
    except (OSError, ValueError):
        return b""


def half_close(sock: socket.socket) -> None:
    """End the own direction of the connection, and continue to read."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
