"""The answer of ``GET /api/v1/ready``, of one server and of several. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

ADVISORY: Final = frozenset({"quarantine", "canary"})
"""Advisory parts: records are delivered without them."""

ReadinessPart = Mapping[str, Any]
"""``ok``, ``state``, and perhaps more."""
OFF: Final[ReadinessPart] = {"ok": True, "state": "off"}
"""The entry of a part that is not in use."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """:ivar parts: an entry per part, in their order."""

    draining: bool
    parts: Mapping[str, ReadinessPart] = field(default_factory=dict)

    @property
    def failing(self) -> list[str]:
        """The parts that keep the server from being ready; empty if it is ready."""
        names = [name for name, part in self.parts.items() if not part["ok"] and name not in ADVISORY]
        return ["draining", *names] if self.draining else names

    def body(self) -> dict[str, object]:
        """The JSON object."""
        failing = self.failing
        message = {"message": f"not ready: {', '.join(failing)}"} if failing else {}
        return {**message, "status": "unavailable" if failing else "ready", "parts": self.parts}


def worst(reports: Iterable[Readiness]) -> Readiness:
    """Combine reports: for each part the first entry that is not ``ok``, else the first."""
    draining, parts = False, dict[str, ReadinessPart]()
    for report in reports:
        draining = draining or report.draining
        for name, part in report.parts.items():
            if name not in parts or (parts[name]["ok"] and not part["ok"]):
                parts[name] = part
    return Readiness(draining, parts)


def workers_part(missing: Sequence[str]) -> ReadinessPart:
    """The part ``workers``.

    :param missing: the names of the workers that do not answer
    """
    return {"ok": False, "state": "missing", "missing": list(missing)} if missing else {"ok": True, "state": "ready"}
