"""All errors of this package. Exceptions carry their data as attributes.

::

    CocoaError
    |-- SettingError        a setting is invalid: its key, source and allowed values
    |-- IdentityError       a token does not identify a device (401)
    |   |-- MissingToken
    |   |-- InvalidToken
    |   `-- InvalidClaims
    |-- KeyMaterialError    a key file, PEM or JWKS cannot be used
    |   `-- SharedSecret    admin tokens have a secret of device tokens: the setting
    |-- ProtocolError       a WebSocket frame breaks RFC 6455: the close code to answer with
    |-- BrokerError         the broker rejected a record, or is unreachable
    |   |-- BrokerClosed    publish after close
    |   |-- RecordTooLarge  the record exceeds the topic's limit
    |   |-- WriteDenied     the gateway may not write to the topic
    |   |-- RecordGone      the quarantine topic has no such record
    |   `-- AlreadyRequeued  the record has been requeued before
    |-- ProbeError          probe-device cannot start, in probe/verdicts.py
    |-- SpeechError         speech could not be turned into text
    |   |-- SpeechBusy      all workers are busy and the queue is full (429)
    |   |-- AudioNotDecodable  the audio does not match its declared type (400)
    |   |-- AudioTooLong    the audio exceeds a stream's limit (413)
    |   `-- EngineFailed    the engine failed; only this stream is lost (502)
    |-- MailboxError        the mailbox is unavailable
    |   |-- MailboxClosed   append after close
    |   |-- Superseded      another connection, perhaps of another server, holds the device
    |   `-- StoreFault      an operation of a store failed, in mailboxes/store.py
    |       `-- RedisStoreFault  one of the mailbox in Redis, in mailboxes/redis_faults.py
    |-- RedisFault          Redis is unreachable, or rejects a command, in redis_store/faults.py
    |-- BlockFault          the blocked devices cannot be read or written, in admin/blocks.py
    `-- ServiceError        the gateway cannot start (port taken, certificate unreadable, ...)

Adapters translate the errors of other libraries with ``raise ... from``.
"""

from __future__ import annotations

from typing import Final

from .plain_text import one_line


class CocoaError(Exception):
    """Base class of all errors of this package."""


class SettingError(CocoaError):
    """A setting is invalid. ``str()`` is one printable line of bounded length for any value.

    :ivar name: the setting's key, as in a configuration file
    :ivar source: the source of the value, such as ``environment COCOA_PORT``
    :ivar allowed: the allowed values
    """

    def __init__(self, name: str, source: str, problem: str, allowed: str = "") -> None:
        self.name, self.source = one_line(name), one_line(source)
        self.problem, self.allowed = one_line(problem), one_line(allowed)
        tail = f"; allowed: {self.allowed}" if allowed else ""
        super().__init__(f"setting {self.name} ({self.source}): {self.problem}{tail}")


class IdentityError(CocoaError):
    """A token does not identify a device.

    :ivar message: the message of the 401, exactly as in the contract
    :ivar reason: one word for a metric label and the log, without any part of the token
    """

    message = "Invalid JWT token"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{self.message} ({reason})")


class MissingToken(IdentityError):
    """No token in the query, the Authorization header or the subprotocol pair."""

    message = "Missing JWT token"


class InvalidToken(IdentityError):
    """The token is malformed, not signed by a known key, expired, or not valid yet."""

    message = "Invalid JWT token"


class InvalidClaims(IdentityError):
    """The signature is valid, but a claim is missing, mistyped or meant for another service."""

    message = "Invalid JWT claims"


class KeyMaterialError(CocoaError):
    """A key file, PEM or JWKS cannot be used. ``str()`` names the file or URL, never the key."""


class SharedSecret(KeyMaterialError):
    """A secret of device tokens, from a key file or another setting, verifies admin tokens too.

    :ivar setting: the setting of the admin tokens
    """

    PROBLEM: Final = "it has a secret that verifies device tokens"
    ALLOWED: Final = "a secret of its own, in no key file of device tokens"

    def __init__(self, setting: str) -> None:
        self.setting = setting
        super().__init__(f"setting {setting}: {self.PROBLEM}; allowed: {self.ALLOWED}")


class ProtocolError(CocoaError):
    """A peer broke RFC 6455.

    :ivar close_code: the close code to answer with (1002, 1003, 1007, 1009)
    """

    def __init__(self, close_code: int, reason: str) -> None:
        self.close_code, self.reason = close_code, reason
        super().__init__(f"{close_code} {reason}")


class BrokerError(CocoaError):
    """The broker rejected a record, or is unreachable."""


class BrokerClosed(BrokerError):
    """The broker adapter is closed and publishes nothing more."""


class RecordTooLarge(BrokerError):
    """The record exceeds the broker's size limit; its producer must send smaller ones."""


class WriteDenied(BrokerError):
    """The brokers do not allow this client to write to the topic."""


class RecordGone(BrokerError):
    """The quarantine topic has no such record, or no longer."""


class AlreadyRequeued(BrokerError):
    """The quarantined record has been put back on the results topic before."""


class MailboxError(CocoaError):
    """The mailbox is unavailable, or an operation failed. ``str()`` is one line for operators."""


class MailboxClosed(MailboxError):
    """The mailbox is closed and stores nothing more."""


class Superseded(MailboxError):
    """The connection that reads the box does not hold the device any more."""


class ServiceError(CocoaError):
    """The gateway cannot start. ``str()`` is one line with the cause and the remedy."""


class SpeechError(CocoaError):
    """Speech could not be turned into text."""


class SpeechBusy(SpeechError):
    """All workers are busy and the queue is full, or the device has reached its limit of streams (429).

    :ivar retry_after_s: an estimate of when a retry may succeed
    """

    def __init__(self, message: str = "no worker is free", retry_after_s: float = 5.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class AudioNotDecodable(SpeechError):
    """The audio does not match its declared type, or cannot be decoded (400)."""


class AudioTooLong(SpeechError):
    """The audio exceeds a stream's limit (413)."""


class EngineFailed(SpeechError):
    """The speech engine failed. Only this stream is lost; the engine continues (502)."""
