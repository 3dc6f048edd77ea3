"""Interprets the errors of kafka-python."""

from __future__ import annotations

from kafka import errors as kafka_errors

AUTH_ERRORS: tuple[type[Exception], ...] = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.AuthorizationError,
    kafka_errors.UnsupportedSaslMechanismError,
)

TOO_LARGE_ERRORS: tuple[type[Exception], ...] = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
)

GROUP_MOVED_ON: tuple[type[Exception], ...] = (
    kafka_errors.CommitFailedError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.UnknownMemberIdError,
)
"""A commit was too late because the group is about to rebalance. The next poll() joins in."""


class UnreachableBroker(kafka_errors.KafkaConnectionError):  # type: ignore[misc]  # kafka-python ships no types
    """A broker cannot be reached at its advertised address.

    :ivar address: ``host:port``
    :ivar cause: the connection's error
    """

    def __init__(self, address: str, cause: BaseException) -> None:
        super().__init__(f"{address}: {describe(cause)}")
        self.address, self.cause = address, cause


def is_retriable(error: BaseException) -> bool:
    """True if the same client may succeed later: timeouts, lost connections, elections."""
    return isinstance(error, kafka_errors.RetriableError)


def unreachable(error: BaseException) -> str | None:
    """The advertised address of a broker, if connecting to it failed."""
    return error.address if isinstance(error, UnreachableBroker) else None


def describe(error: BaseException) -> str:
    """One line about an error of kafka-python: its class, and its text unless that is long or empty."""
    if isinstance(error, UnreachableBroker):
        return describe(error.cause)
    name = type(error).__name__
    text = " ".join(str(error).split())
    if not text or len(text) > 160:
        return name
    return text if name in text else f"{name}: {text}"
