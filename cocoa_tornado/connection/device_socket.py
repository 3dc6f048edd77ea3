"""A device's socket after the upgrade. IOLoop thread only.

It uses asyncio's event loop directly. Tornado's ``IOStream``, which it belongs to until the upgrade, is made for
protocols that wait for a number of bytes or a delimiter: it reads ahead, makes a future for each read, and
tries the socket once more before it waits. For an idle device that would cost more than everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

from .sockets import half_close, peer_has_closed, tune_for_messages, unacknowledged_bytes, unread_bytes

MOST_PER_WRITE = 128 * 1024
"""How much of a long write is tried in one turn of the loop, if the socket has not taken it at once."""
HOLD_S = 1.0
"""How long something may be held."""
TLS_RECORD_BYTES = 16 * 1024
"""The most that TLS encrypts at once. Encrypted data has to be sent."""


class DeviceSocket:
    """A connected socket that does not block.

    :param unread: bytes that were read from it already
    :param unsent: bytes to write before anything else
    :param is_held: write nothing before :meth:`let_go` is called, or :data:`HOLD_S` has passed
    :ivar has_failed: a write has failed, and nothing more is written. What was received may still be read
    """

    __slots__ = (
        "_hold",
        "_loop",
        "_on_readable",
        "_on_sent",
        "_sock",
        "_taken_bytes",
        "_unread",
        "_unsent",
        "has_failed",
    )

    def __init__(self, sock: socket.socket, unread: bytes = b"", unsent: bytes = b"", *, is_held: bool = False) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._unread = unread
        self._unsent: memoryview | None = None
        self._hold = self._loop.call_later(HOLD_S, self.let_go) if is_held and unsent else None
        self._taken_bytes = 0  # of writes that were not taken at once
        self._on_readable: Callable[[], None] | None = None  # while it is read from
        self._on_sent: Callable[[], None] | None = None
        self.has_failed = False
        tune_for_messages(sock)
        if self._hold is not None:
            self._unsent = memoryview(unsent)
        elif unsent:
            self.write(unsent)

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else f"{len(self._unsent or b'')} bytes to send"
        return f"<{type(self).__name__} {state}>"

    # -- reading

    def start_reading(self, on_readable: Callable[[], None]) -> None:
        """Call ``on_readable``, but not within this call, whenever :meth:`read` may return something."""
        self._on_readable = on_readable
        self._watch_reading()
        if self._has_buffered():
            self._loop.call_soon(self._read_on)

    def stop_reading(self) -> None:
        """Leave received data in the kernel, so that TCP stops the peer when its buffer is full."""
        if self._on_readable is not None:
            self._on_readable = None
            self._watch_reading()

    def _watch_reading(self) -> None:
        """Have the event loop watch for data, or no longer."""
        if self._on_readable is not None:
            self._loop.add_reader(self._sock.fileno(), self._on_readable)
        else:
            self._loop.remove_reader(self._sock.fileno())

    def read(self, size: int) -> bytes | None:
        """Received data, ``size`` bytes at most; b"" at the end; None if there is none now. Raises OSError."""
        if self._unread:
            return self._take_unread(size)
        try:
            return self._sock.recv(size)
        except BlockingIOError:
            return None

    def _take_unread(self, size: int) -> bytes:
        data, self._unread = self._unread[:size], self._unread[size:]
        if self._has_buffered():
            self._loop.call_soon(self._read_on)
        return data

    def _has_buffered(self) -> bool:
        """Whether there is data to read that the event loop does not know of."""
        return bool(self._unread)

    def _read_on(self) -> None:
        if self._on_readable is not None:
            self._on_readable()

    # -- writing

    def let_go(self) -> None:
        """Write what was held. Idempotent."""
        if self._end_hold():
            self._send_rest()
            if self._unsent is not None:
                self._watch_writing()

    def _end_hold(self) -> bool:
        """Whether something was held."""
        if self._hold is None:
            return False
        self._hold.cancel()
        self._hold = None
        return True

    def write(self, data: bytes, on_sent: Callable[[], None] | None = None) -> bool:
        """Write; True if the socket has taken everything. Otherwise the rest is written as soon as possible, and
        ``on_sent`` is called afterwards, or if it fails, but not within this call. Write nothing before that.

        Right after False, :meth:`progress` says how far it has come, and :meth:`take_back` shortens the rest.
        """
        if self._unsent is not None:  # what the constructor was given
            self._send_later(bytes(self._unsent) + data, on_sent)
            return False
        if self.has_failed:  # bytes are missing, so the peer could not read what follows as a frame
            self._fail(on_sent)
            return False
        try:
            taken = self._send(data)
        except OSError:
            self._fail(on_sent)
            return False
        if taken == len(data):
            return True
        self._send_later(data, on_sent, taken)
        return False

    def progress(self, size: int) -> tuple[int, int]:
        """Return how many bytes of a write that has just returned False the socket has taken, and how many it has taken
        or must still be given unchanged.

        :param size: of the write
        """
        if self._unsent is None:
            return 0, 0  # it has failed
        taken = size - len(self._unsent)  # negative: earlier data is not written yet
        return max(0, taken), max(0, taken + self._tried_bytes)

    def take_back(self, size: int) -> None:
        """Don't write the last bytes of a write that has just returned False. If nothing remains, ``on_sent`` is called
        as soon as the socket has room."""
        if self._unsent is not None and size:
            self._unsent = memoryview(
                bytes(self._unsent[: len(self._unsent) - size])
            )  # a copy, to free what is not sent

    @property
    def _tried_bytes(self) -> int:
        """How many bytes of the rest must not change, because the socket has been asked to take them."""
        return 0

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0

    def _send_later(self, data: bytes, on_sent: Callable[[], None] | None, taken: int = 0) -> None:
        self._unsent, self._on_sent = memoryview(data)[taken:], on_sent
        self._watch_writing()

    def _watch_writing(self) -> None:
        """Have the event loop watch for room, or no longer."""
        if self._hold is not None:
            return
        if self._unsent is not None:
            self._loop.add_writer(self._sock.fileno(), self._send_rest)
        else:
            self._loop.remove_writer(self._sock.fileno())

    def _send_rest(self) -> None:
        assert self._unsent is not None
        try:
            taken = self._send(self._unsent[:MOST_PER_WRITE])
        except OSError:
            self._fail(self._stop_sending())
            return
        self._taken_bytes += taken
        self._unsent = self._unsent[taken:]
        if not self._unsent:
            on_sent = self._stop_sending()
            if on_sent is not None:
                on_sent()

    def _stop_sending(self) -> Callable[[], None] | None:
        """Return the callback of the write."""
        if self._unsent is not None:
            self._unsent = None
            self._watch_writing()
        on_sent, self._on_sent = self._on_sent, None
        return on_sent

    def _fail(self, on_sent: Callable[[], None] | None) -> None:
        self.has_failed = True
        if on_sent is not None:
            self._loop.call_soon(on_sent)

    # -- its state

    @property
    def is_closed(self) -> bool:
        return self._sock.fileno() < 0

    @property
    def peer_ip(self) -> str:
        """The address at the other end; "" if the socket is not connected any more."""
        with contextlib.suppress(OSError):
            name = self._sock.getpeername()
            return str(name[0]) if isinstance(name, tuple) else ""
        return ""

    @property
    def write_mark(self) -> tuple[int, int]:
        """A value that changes whenever the peer has taken a byte of a write."""
        return self._taken_bytes, unacknowledged_bytes(self._sock)

    @property
    def all_is_acknowledged(self) -> bool:
        """Whether the peer's kernel has acknowledged all that was written. True if the platform cannot tell."""
        return self._unsent is None and not unacknowledged_bytes(self._sock)

    @property
    def may_have_unread(self) -> bool:
        """Whether there is unread data. False if the platform cannot tell."""
        return self._has_buffered() or unread_bytes(self._sock) > 0

    @property
    def peer_has_closed(self) -> bool:
        """See ``sockets.peer_has_closed``."""
        return peer_has_closed(self._sock)

    # -- the end

    def half_close(self) -> None:
        """End the own direction of the connection, and continue to read. Over TLS it does nothing."""
        half_close(self._sock)

    def close(self) -> None:
        """Close. No callback is called afterwards. Idempotent."""
        if self.is_closed:
            return
        self._end_hold()
        self.stop_reading()
        self._stop_sending()
        self._unread = b""
        with contextlib.suppress(OSError):
            self._sock.close()


class TlsDeviceSocket(DeviceSocket):
    """The same over TLS, once its handshake is over.

    TLS may have to write before it can read on (the answer to a key update), and to read before it can write on (a
    renegotiation). Then the loop watches for that direction only: the other one is ready, and the loop would spin.
    """

    __slots__ = ("_pending_bytes", "_read_waits_for_room", "_write_waits_for_data")

    _sock: ssl.SSLSocket

    def __init__(self, sock: socket.socket, unread: bytes = b"", unsent: bytes = b"", *, is_held: bool = False) -> None:
        self._read_waits_for_room = self._write_waits_for_data = False
        self._pending_bytes = 0  # of the piece that OpenSSL could not write
        super().__init__(sock, unread, unsent, is_held=is_held)

    def read(self, size: int) -> bytes | None:
        if self._unread:
            return self._take_unread(size)
        try:
            data = self._sock.recv(size)
        except ssl.SSLWantReadError:
            self._let_read_wait(for_room=False)
            return None
        except ssl.SSLWantWriteError:
            self._let_read_wait(for_room=True)
            return None
        self._let_read_wait(for_room=False)
        if data and self._has_buffered():
            # The kernel does not report the rest of a record, which is in TLS already.
            self._loop.call_soon(self._read_on)
        return data

    def _has_buffered(self) -> bool:
        return bool(self._unread) or (not self.is_closed and self._sock.pending() > 0)

    def _send(self, data: bytes | memoryview) -> int:
        # In equal pieces: OpenSSL rejects a shorter piece than the one that it could not write. And in small ones: the
        # piece that it could not write is encrypted, and can't be taken back.
        rest, waits_for_data, self._pending_bytes = memoryview(data), False, 0
        try:
            while rest and (taken := self._sock.send(rest[:TLS_RECORD_BYTES])):
                rest = rest[taken:]
        except ssl.SSLWantReadError:
            waits_for_data = True  # the same piece is tried again later
        except (ssl.SSLWantWriteError, BlockingIOError):
            pass
        if rest:
            self._pending_bytes = min(len(rest), TLS_RECORD_BYTES)
        if waits_for_data is not self._write_waits_for_data:
            self._write_waits_for_data = waits_for_data
            self._watch()
        return len(data) - len(rest)

    @property
    def _tried_bytes(self) -> int:
        return self._pending_bytes

    # -- which direction to watch

    @property
    def _has_to_write(self) -> bool:
        return self._unsent is not None and self._hold is None

    def _let_read_wait(self, *, for_room: bool) -> None:
        if for_room is not self._read_waits_for_room:
            self._read_waits_for_room = for_room
            self._watch()

    def _watch(self) -> None:
        """Watch for data and for room as far as reading and writing wait for them."""
        fd, reads, writes = self._sock.fileno(), self._on_readable is not None, self._has_to_write
        if (reads and not self._read_waits_for_room) or (writes and self._write_waits_for_data):
            self._loop.add_reader(fd, self._on_data)
        else:
            self._loop.remove_reader(fd)
        if (writes and not self._write_waits_for_data) or (reads and self._read_waits_for_room):
            self._loop.add_writer(fd, self._on_room)
        else:
            self._loop.remove_writer(fd)

    _watch_reading = _watch_writing = _watch

    def _on_data(self) -> None:
        if self._has_to_write and self._write_waits_for_data:
            self._send_rest()
        if not self._read_waits_for_room:
            self._read_on()

    def _on_room(self) -> None:
        if self._has_to_write and not self._write_waits_for_data:
            self._send_rest()
        if self._read_waits_for_room:
            self._read_on()

    def half_close(self) -> None: ...


def device_socket(
    sock: socket.socket, unread: bytes = b"", unsent: bytes = b"", *, is_held: bool = False
) -> DeviceSocket:
    """For a socket with or without TLS."""
    kind = TlsDeviceSocket if isinstance(sock, ssl.SSLSocket) else DeviceSocket
    return kind(sock, unread, unsent, is_held=is_held)
