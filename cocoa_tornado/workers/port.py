"""What a server knows of the other workers under its parent."""

from __future__ import annotations

from typing import Protocol

from ..rules.readiness_report import Readiness


class Siblings(Protocol):
    """IOLoop thread. Both answer within about 1.5 s, even if other workers hang, and never fail."""

    async def metrics(self, own: str) -> str:
        """The metrics of all workers, added up.

        :param own: this worker's, which are the answer if the parent does not give one
        """

    async def ready(self, own: Readiness) -> Readiness:
        """The worst of all workers, and the part ``workers``.

        :param own: likewise
        """
