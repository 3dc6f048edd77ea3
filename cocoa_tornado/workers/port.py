"""The port to the other workers under the same parent."""

from __future__ import annotations

from typing import Protocol

from ..rules.readiness_report import Readiness


class Siblings(Protocol):
    """IOLoop thread. Both answer within about 1.5 s, even if other workers hang, and never fail."""

    async def metrics(self, own: str) -> str:
        """The metrics of all workers, added up.

        :param own: this worker's metrics, returned if the parent does not answer
        """

    async def ready(self, own: Readiness) -> Readiness:
        """The worst state of each part over all workers, and the part ``workers``.

        :param own: this worker's report, returned if the parent does not answer
        """
