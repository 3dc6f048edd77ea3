"""The errors of Redis as one line."""

from __future__ import annotations

import pytest
from redis.exceptions import BusyLoadingError, ResponseError

from cocoa_tornado.redis_store.faults import AnotherProcess, fault_of


@pytest.mark.parametrize(
    ("error", "detail", "away"),
    [
        (ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), "to its disk", False),
        (ResponseError("Error running script (call to f_1): @user_script:1: -OOM command"), "no memory left", False),
        (ResponseError("ACL failure in script: this user has no permissions"), "lacks a permission", False),
        (ResponseError("something else"), "Redis rejects a command: something else", False),
        (ResponseError("BUSY Redis is busy running a script."), "busy", True),
        (BusyLoadingError("LOADING Redis is loading the dataset in memory"), "is loading", True),
        (ConnectionRefusedError(111, "Connection refused"), "no connection", True),
    ],
)
def test_errors_of_redis_are_translated(error: Exception, detail: str, away: bool) -> None:
    fault = fault_of(error)
    assert detail in str(fault)
    assert fault.away is away


def test_faults_say_of_which_kind_they_are() -> None:
    assert fault_of(ResponseError("READONLY You can't write against a read only replica.")).is_replica
    assert fault_of(ResponseError("WRONGTYPE Operation against a key")).is_foreign
    assert fault_of(AnotherProcess("Redis was restarted or replaced")).is_another_process
