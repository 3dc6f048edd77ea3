"""The errors of Redis and of the way to it, as one line for operators."""

from __future__ import annotations

import re
from typing import Final

from redis import exceptions as errors

from ..errors import CocoaError

NOT_ANSWERING: Final = "Redis does not answer"

# Causes by the first word of Redis' error reply. Versions before 7 put the script's name before it.
_CAUSES: Final = {
    "OOM": "Redis has no memory left (maxmemory)",
    "READONLY": "this Redis is a read-only replica",
    "MISCONF": "Redis cannot write to its disk",
    "WRONGTYPE": "a key has another type",
    "LOADING": "Redis is loading its data",
    "NOAUTH": "Redis requires a password",
    "WRONGPASS": "Redis rejects this user and password",
    "NOPERM": "the Redis user lacks a permission",
    "BUSY": "Redis is busy running a script",
    "MASTERDOWN": "this Redis is a replica, and its master is down",
    "NOREPLICAS": "Redis has fewer replicas than min-replicas-to-write",
    "MOVED": "this Redis is a cluster node, which is not supported",
}
_CAUSE: Final = re.compile(rf"\b({'|'.join(_CAUSES)})\b")
# Older versions of redis-py strip the word.
_CAUSE_OF_CLASS: Final[dict[type, str]] = {
    errors.OutOfMemoryError: "OOM",
    errors.ReadOnlyError: "READONLY",
    errors.BusyLoadingError: "LOADING",
    errors.NoPermissionError: "NOPERM",
}
_FORBIDDEN_IN_SCRIPT: Final = re.compile("can't run this command|can't access at least one|ACL failure")
_AWAY: Final = frozenset({"LOADING", "NOAUTH", "WRONGPASS", "BUSY", "MASTERDOWN", "MOVED"})


class RedisFault(CocoaError):
    """Redis is unreachable, or rejects a command. ``str()`` is one line for operators.

    :ivar away: no reply, or none that says anything about the data; False: Redis may still be read
    :ivar is_foreign: a key has a wrong type
    :ivar is_replica: this Redis accepts no writes because it is a replica
    :ivar is_another_process: the connection has reached another Redis process than the commands were computed for
    """

    def __init__(
        self,
        detail: str,
        *,
        away: bool = True,
        is_foreign: bool = False,
        is_replica: bool = False,
        is_another_process: bool = False,
    ) -> None:
        self.away, self.is_foreign, self.is_replica = away, is_foreign, is_replica
        self.is_another_process = is_another_process
        super().__init__(detail)


class AnotherProcess(errors.RedisError):
    """A reconnection has reached another Redis process."""


def fault_of(error: Exception) -> RedisFault:
    """Translate an error of redis-py or the network."""
    if isinstance(error, AnotherProcess):
        return RedisFault(str(error), is_another_process=True)
    code = getattr(error, "status_code", None) or _CAUSE_OF_CLASS.get(type(error), "")
    found = _CAUSE.search(code) or _CAUSE.search(str(error))
    if _FORBIDDEN_IN_SCRIPT.search(str(error)) or (found is not None and found[1] == "NOPERM"):
        return RedisFault(f"{_CAUSES['NOPERM']}: {error}", away=False)
    if found is not None:
        word = found[1]
        kinds = {"is_foreign": word == "WRONGTYPE", "is_replica": word == "READONLY"}
        return RedisFault(_CAUSES[word], away=word in _AWAY, **kinds)
    if isinstance(error, (errors.TimeoutError, TimeoutError)):
        return RedisFault(NOT_ANSWERING)
    if isinstance(error, errors.AuthenticationError):
        return RedisFault(_CAUSES["NOAUTH" if "required" in str(error) else "WRONGPASS"])
    if isinstance(error, (errors.ConnectionError, OSError)):
        return RedisFault(f"no connection to Redis: {error}")
    return RedisFault(f"Redis rejects a command: {error}", away=False)
