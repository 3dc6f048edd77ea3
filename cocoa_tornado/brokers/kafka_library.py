"""The interface of a client library for the consuming half, on its thread: requests, and the meaning of errors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import Final, Protocol, TypeVar

from ..rules.topic_log import Committed

CALL_S: Final = 2.0
"""For one request to the brokers: offsets, positions."""

P = TypeVar("P")  # the library's type for a partition


class FailureReader(Protocol):
    """Interprets the errors of a client library.

    :ivar failures: the exception classes that mean a failure of the brokers rather than of this program
    """

    failures: tuple[type[Exception], ...]

    def is_retriable(self, error: BaseException) -> bool:
        """True if the same client may succeed later: timeouts, lost connections, elections."""

    def is_refusal(self, error: BaseException) -> bool:
        """True if the brokers refuse access."""

    def describe(self, error: BaseException) -> str:
        """One line about an error."""

    def unreachable(self, error: BaseException) -> str | None:
        """The advertised address of a broker, if connecting to it failed."""


class GroupReader(Protocol[P]):
    """The consumer of one library, as a member of the group. Each request raises the library's errors.

    :ivar mark: the metadata to commit with each offset
    """

    mark: str

    @abstractmethod
    def key(self, number: int) -> P:
        """The results topic's partition with this number."""

    @abstractmethod
    def number(self, partition: P) -> int: ...

    @abstractmethod
    def member_id(self) -> str | None:
        """This member's id in the group, while it is a member."""

    @abstractmethod
    def numbers(self) -> Collection[int]:
        """The results topic's partition numbers, as far as they are known."""

    @abstractmethod
    def committed(self, partitions: Collection[P]) -> dict[P, Committed | None]:
        """The group's committed offsets."""

    @abstractmethod
    def find_ends(self, partitions: Collection[P]) -> dict[P, int]: ...

    @abstractmethod
    def find_beginnings(self, partitions: Collection[P]) -> dict[P, int]: ...

    @abstractmethod
    def commit_and_wait(self, offsets: dict[P, int]) -> None: ...

    @abstractmethod
    def begin_at(self, starts: dict[P, int]) -> bool:
        """Read these partitions from these offsets. False: not possible now, try again."""

    @abstractmethod
    def commit_later(self, offsets: dict[P, int]) -> None:
        """Commit, and pass the answer to ``Reading.on_commit`` on this thread."""
