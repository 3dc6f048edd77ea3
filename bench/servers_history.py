"""The history that the devices of several servers have seen, for a check with Porcupine (``porcupine/main.go``)."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .contenders import build_go, cache_folder

FOLDER = Path(__file__).parent / "porcupine"
PATIENCE_S = 600.0
AFTERMATH_S = 4.0
"""For so long after a connection attempt that a client has given up, a server may take it for a connection."""


@dataclass(slots=True)
class Operation:
    """An operation of a client. It has taken effect at some moment between ``called`` and ``returned``, or not at all.

    :ivar conn: names the connection within its device
    :ivar status: the answer to a connect; 0: unknown, or nothing follows from it
    :ivar generation: term and number, if the server has published it; (0, 0): it has not
    """

    device_id: str
    kind: Literal["connect", "act", "end"]
    conn: int
    called: int
    returned: int
    status: int = 0
    generation: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Verdict:
    """Of Porcupine. :ivar violations: devices whose operations have no order in which they have one holder at a time
    :ivar unknown: devices whose histories took too long to check
    """

    histories: int
    operations: int
    violations: list[str]
    unknown: list[str]


@dataclass(slots=True)
class History:
    """The operations of all devices, in the order in which they were called."""

    operations: list[Operation] = field(default_factory=list)
    _given_up: dict[str, list[int]] = field(default_factory=dict)

    def begin(self, device_id: str, kind: Literal["connect", "act", "end"], conn: int, since: int = 0) -> Operation:
        """An operation that never returns unless ``returned`` is set.

        :param since: when it was called; 0: now
        """
        operation = Operation(device_id, kind, conn, since or now(), FOREVER)
        self.operations.append(operation)
        return operation

    def note_given_up(self, device_id: str) -> None:
        """A client has left while its connection attempt was under way."""
        self._given_up.setdefault(device_id, []).append(now())

    def note_generation(self, device_id: str, conn: int, generation: tuple[int, int]) -> None:
        for operation in self.operations:
            if operation.kind == "connect" and (operation.device_id, operation.conn) == (device_id, conn):
                operation.generation = generation

    def check(self) -> Verdict:
        """Raises Unavailable if Go is missing."""
        binary = cache_folder() / "go" / "porcupine"
        build_go(FOLDER, binary)
        lines = "".join(json.dumps(self._line(operation)) + "\n" for operation in self.operations)
        done = subprocess.run(
            [str(binary)], input=lines, capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
        return Verdict(**json.loads(done.stdout))

    def _line(self, one: Operation) -> dict[str, object]:
        status = 0 if one.status == 409 and self._may_be_an_aftermath(one) else one.status
        term, number = one.generation
        return {
            **{"device": one.device_id, "kind": one.kind, "conn": one.conn, "status": status},
            **{"term": term, "number": number, "call": one.called, "return": one.returned},
        }

    def _may_be_an_aftermath(self, one: Operation) -> bool:
        """Whether the 409 may be because of a client that has left without an answer, which the server admitted."""
        after = int(AFTERMATH_S * 1e9)
        return any(at <= one.returned and one.called <= at + after for at in self._given_up.get(one.device_id, ()))


FOREVER = 1 << 62


def now() -> int:
    return time.monotonic_ns()
