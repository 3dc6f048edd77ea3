"""The one tree of errors; the data rides on the exception.

::

    CocoaError
    |-- SettingError        a setting is wrong: which one, where it came from, what is allowed
    |-- IdentityError       a token does not identify a device (401)
    |   |-- MissingToken
    |   |-- InvalidToken
    |   `-- InvalidClaims
    |-- KeyMaterialError    a key file, PEM or JWKS cannot be used
    |-- ProtocolError       a WebSocket frame breaks RFC 6455: the close code to answer with
    |-- BrokerError         the broker refused, or is away
    |   |-- BrokerClosed    publish after close
    |   `-- RecordTooLarge  the topic does not take records of this size
    |-- ProbeError          probe-device cannot begin, in probe/verdicts.py
    |-- SpeechError         speech could not be turned into text
    |   |-- SpeechBusy      every worker is taken and the queue is full (429)
    |   |-- AudioNotDecodable  it is not the audio it was said to be (400)
    |   |-- AudioTooLong    more than a stream may have (413)
    |   `-- EngineFailed    the engine failed; the stream is lost, the engine goes on (502)
    |-- MailboxError        the mailbox does not answer, or cannot
    |   |-- MailboxClosed   append after close
    |   `-- StoreFault      what its store could not do, in mailboxes/store.py
    |       `-- RedisFault  the same of Redis, in mailboxes/redis_connection.py
    `-- ServiceError        the gateway cannot start (port taken, certificate unreadable, ...)

Errors of other libraries are translated where they enter, in the adapter, with ``raise ... from``.
"""

from __future__ import annotations

from .plain_text import one_line


class CocoaError(Exception):
    """Base of all errors that this package raises on purpose."""


class SettingError(CocoaError):
    """A setting is wrong. ``str()`` is one printable line of bounded length for any value.

    :ivar name: the setting's key, as in a configuration file
    :ivar source: where the value came from, as a person would say it: ``environment COCOA_PORT``
    :ivar allowed: what would have been right
    """

    def __init__(self, name: str, source: str, problem: str, allowed: str = "") -> None:
        self.name, self.source = one_line(name), one_line(source)
        self.problem, self.allowed = one_line(problem), one_line(allowed)
        tail = f"; allowed: {self.allowed}" if allowed else ""
        super().__init__(f"setting {self.name} ({self.source}): {self.problem}{tail}")


class IdentityError(CocoaError):
    """A token does not identify a device.

    :ivar message: the body of the 401, exactly as the contract gives it
    :ivar reason: one word for a metric label and the log; never holds any part of the token
    """

    message = "Invalid JWT token"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{self.message} ({reason})")


class MissingToken(IdentityError):
    """No token in the query, the Authorization header or the subprotocol pair."""

    message = "Missing JWT token"


class InvalidToken(IdentityError):
    """The token is malformed, not signed by a key of ours, expired, or not valid yet."""

    message = "Invalid JWT token"


class InvalidClaims(IdentityError):
    """The token is genuine, but a claim is missing, mistyped or not meant for this service."""

    message = "Invalid JWT claims"


class KeyMaterialError(CocoaError):
    """A key file, PEM or JWKS cannot be used. ``str()`` names the file or URL and never the key."""


class ProtocolError(CocoaError):
    """A peer broke RFC 6455.

    :ivar close_code: the close code to answer with (1002, 1003, 1007, 1009)
    """

    def __init__(self, close_code: int, reason: str) -> None:
        self.close_code, self.reason = close_code, reason
        super().__init__(f"{close_code} {reason}")


class BrokerError(CocoaError):
    """The broker refused a record, or can't be reached."""


class BrokerClosed(BrokerError):
    """The broker adapter has been closed: nothing more is published."""


class RecordTooLarge(BrokerError):
    """The broker does not take a record of this size. Whoever produced it must send less at a time."""


class MailboxError(CocoaError):
    """The mailbox does not answer, or cannot do what it was asked for now. ``str()`` is one line for people."""


class MailboxClosed(MailboxError):
    """The mailbox has been closed: nothing more is stored."""


class ServiceError(CocoaError):
    """The gateway cannot start; ``str()`` is one line that says why and what to do."""


class SpeechError(CocoaError):
    """Speech could not be turned into text."""


class SpeechBusy(SpeechError):
    """Every worker has a stream and the queue is full, or the device has its share already (429).

    :ivar retry_after_s: when it is worth trying again, as far as one can tell
    """

    def __init__(self, message: str = "no worker is free", retry_after_s: float = 5.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class AudioNotDecodable(SpeechError):
    """The audio is not what it was said to be, or nothing that can be decoded (400)."""


class AudioTooLong(SpeechError):
    """More audio than a stream may have (413)."""


class EngineFailed(SpeechError):
    """The speech engine failed: the stream is lost, the engine goes on (502)."""
