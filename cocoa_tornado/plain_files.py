"""Reads small files that people write: secrets, keys, settings. Size and time are bounded, also for a pipe or a device.

It is at the bottom of the layers: any module may import it.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import stat
import time
from pathlib import Path
from typing import Final

STREAM_PATIENCE_S: Final = 10.0
"""The total time to wait for a pipe: long enough for a password manager's command to start."""
_CHUNK: Final = 64 * 1024
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_PROBE: Final = 64  # enough bytes to recognize UTF-16 without a byte order mark


class NotText(ValueError):
    """The data is not UTF-8 text. ``str()`` completes a sentence that begins with the file's name."""


def open_file(path: Path | str) -> io.FileIO:
    """Open a regular file for reading. Never blocks.

    :raises OSError: it cannot be opened, or is a directory, a pipe, a socket or a device; see its ``strerror``
    :raises ValueError: the path contains a NUL character
    """
    file = _open(path)
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        raise OSError(errno.EINVAL, f"is {_kind(mode)}, not a file")
    return file


def read_file(path: Path | str, limit: int, *, streams: bool = False, patience_s: float = STREAM_PATIENCE_S) -> bytes:
    """Return the contents of a file; of a larger one, the first ``limit + 1`` bytes.

    Opening never blocks, neither on a pipe without a writer nor on a device.

    :param streams: also read pipes and character devices to their end: ``/dev/stdin``, a shell's ``<(command)``
    :raises OSError: it cannot be read, has another file type, or is a stream that did not end in time; see its
        ``strerror``
    :raises ValueError: the path contains a NUL character
    """
    with _open(path) if streams else open_file(path) as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            deadline = time.monotonic() + patience_s
            return _read_stream(file.fileno(), limit, deadline, ends_at_nothing=stat.S_ISCHR(mode))
        return _read_regular(file.fileno(), limit)


def check_file(path: Path | str, limit: int, *, utf16: bool = False) -> None:
    """Check that ``path`` is a readable regular file of at most ``limit`` bytes.

    :param utf16: accept text in UTF-16
    :raises OSError: it is not
    :raises ValueError: the path contains a NUL character
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"is larger than {limit >> 20} MiB")
        if not utf16 and is_utf16(file.read(_PROBE)):
            raise OSError(errno.EILSEQ, "is text in UTF-16; save it as UTF-8")


def text_of(data: bytes) -> str:
    """Decode UTF-8, without the byte order mark that some editors add.

    :raises NotText: the data is not UTF-8
    """
    if is_utf16(data):
        raise NotText("is text in UTF-16, not UTF-8; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText("is not UTF-8") from error


def without_line_end(text: str) -> str:
    """Return ``text`` without the one line end that editors and ``echo`` add."""
    return text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")


def is_utf16(data: bytes) -> bool:
    """Whether ``data`` looks like UTF-16: it begins with a byte order mark, or every other byte is zero."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    even, odd = data[:_PROBE:2], data[1:_PROBE:2]
    return len(data) >= 4 and any(even) != any(odd)


def _open(path: Path | str) -> io.FileIO:
    # open() checks the path; os.open() would truncate it at a NUL on some systems.
    return open(path, "rb", buffering=0, opener=lambda name, _: os.open(name, _FLAGS))


def _read_regular(descriptor: int, limit: int) -> bytes:
    data = b""
    while len(data) <= limit and (chunk := os.read(descriptor, min(_CHUNK, limit + 1 - len(data)))):
        data += chunk
    return data


def _read_stream(descriptor: int, limit: int, deadline: float, *, ends_at_nothing: bool) -> bytes:
    """Read until the end, ``limit + 1`` bytes, or the deadline.

    A pipe without a writer yet reads as if it had ended, so an empty read is the end only after some data.
    """
    data = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while len(data) <= limit:
        try:
            chunk = os.read(descriptor, min(_CHUNK, limit + 1 - len(data)))
        except BlockingIOError:
            chunk = None
        if chunk:
            data += chunk
            continue
        if chunk is not None and (data or ends_at_nothing):
            break
        left_s = deadline - time.monotonic()
        events = poll.poll(max(0.0, left_s) * 1000)
        if chunk is not None and events and events[0][1] & select.POLLHUP and not events[0][1] & select.POLLIN:
            break  # a writer opened the pipe and closed it without writing
        if not events:
            raise TimeoutError(errno.ETIMEDOUT, "did not end in time")
    return data


def _kind(mode: int) -> str:
    for is_kind, name in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if is_kind(mode):
            return name
    return "a device"
