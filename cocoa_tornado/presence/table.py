"""The store of ``local://``: who holds which device. Pure. Each method stands for one atomic step of a store."""

from __future__ import annotations

from collections.abc import Sequence

from ..rules.claims import Claim, Generation
from .grants import Grant, Lease


class Table:
    """Grants of all devices, by device; those of a device in the order of their generations.

    :param term: of the generations; no table of the same deployment had it before
    """

    def __init__(self, term: int = 0) -> None:
        self._term, self._number = term, 0
        self._devices: dict[str, tuple[Grant, ...]] = {}
        self._leases: dict[str, Lease] = {}

    def __repr__(self) -> str:
        return f"<Table {len(self._devices)} devices, {len(self._leases)} servers>"

    def join(self, lease: Lease) -> None:
        """The epoch of this lease may claim from now on."""
        self._leases[lease.server] = lease

    def end(self, server: str) -> Lease | None:
        """The epoch is over: all its slots are free. Returns its lease, None if there is no such epoch.

        O(devices): it happens once in the life of a server.
        """
        lease = self._leases.pop(server, None)
        if lease is not None:
            self._devices = {
                device_id: others
                for device_id, grants in self._devices.items()
                if (others := tuple(grant for grant in grants if grant.claim.server != server))
            }
        return lease

    def claim(self, device_id: str, claim: Claim, per_device: int) -> Grant | Sequence[Claim]:
        """Grant the device; or return the claims that hold it. A claim that holds it gets the same grant again.

        KeyError if the claim's epoch is over.
        """
        lease = self._leases[claim.server]
        grants = self._devices.get(device_id, ())
        for grant in grants:
            if grant.claim == claim:
                return grant
        if len(grants) >= per_device:
            return [grant.claim for grant in grants]
        self._number += 1
        granted = Grant(device_id, claim, Generation(self._term, self._number), lease)
        self._devices[device_id] = (*grants, granted)
        return granted

    def release(self, device_id: str, claim: Claim) -> None:
        """Free the slot of this very claim. Idempotent."""
        grants = self._devices.get(device_id, ())
        others = tuple([grant for grant in grants if grant.claim != claim])
        if others:
            self._devices[device_id] = others
        else:
            self._devices.pop(device_id, None)

    def grants(self, device_id: str) -> Sequence[Grant]:
        return self._devices.get(device_id, ())
