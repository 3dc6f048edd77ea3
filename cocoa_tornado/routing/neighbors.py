"""What the router knows, and asks, about the devices of the other servers. IOLoop thread only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ..brokers.port import Batch
from ..hub import Hub
from ..presence.port import Presence
from .in_flight import Holders
from .plan import shared_by


class Neighbors:
    """The other servers, which may hold devices that this one does not.

    :param me: the name of this server in presence, which may change
    :param exist: False: there can be none
    """

    def __init__(self, hub: Hub, presence: Presence, me: Callable[[], str], *, exist: bool, has_mailbox: bool) -> None:
        self._hub, self._presence, self._me = hub, presence, me
        self._exist, self._has_mailbox = exist, has_mailbox
        self.needs_overview = exist and not has_mailbox
        """Without a mailbox, what may be for other servers waits until presence knows them all."""

    def is_spread(self) -> bool:
        """Whether devices that are connected here may also have connections to other servers, which then get their
        messages too. False with stand-bys: one of the connections here gets them."""
        return self._exist and not self._hub.has_stand_bys and self._presence.limits().per_device > 1

    def is_shared(self, batch: Batch) -> bool:
        """True if other servers find recipients of their own for a record of this batch."""
        has_others = bool(self._presence.others()) or self.until_overview() is not None
        return has_others and bool(shared_by(batch.records, has_mailbox=self._has_mailbox))

    def until_overview(self) -> asyncio.Future[None] | None:
        """A future that is done once presence knows all other servers; None: it does already, or need not."""
        return self._presence.until_overview() if self.needs_overview else None

    def ask(self, away: Sequence[str]) -> Holders | None:
        """Look up the holders of these devices; None if there are no devices."""
        if not away:
            return None
        device_ids = list(dict.fromkeys(away))
        if self.until_overview() is not None:
            return self.ask_later(device_ids)
        holders = self._presence.holders(device_ids)
        if not self.needs_overview or holders.done():
            return holders
        return self.ask_later(device_ids, holders)

    def ask_later(self, device_ids: Sequence[str], asked: Holders | None = None) -> Holders:
        """Look up holders as soon as presence knows all servers.

        :param asked: a lookup under way. It is repeated if presence does not know all servers once it is answered
        """
        found: Holders = asyncio.get_running_loop().create_future()

        def go_on(_: object) -> None:
            nonlocal asked
            until_overview = self.until_overview()
            if until_overview is not None:
                asked = None
                until_overview.add_done_callback(go_on)
            elif asked is not None and asked.done():
                found.set_result(asked.result())
            else:
                asked = self._presence.holders(device_ids)
                asked.add_done_callback(go_on)

        if asked is None:
            go_on(None)
        else:
            asked.add_done_callback(go_on)
        return found

    def elsewhere(self, holders: Holders | None) -> dict[str, list[str]]:
        """The other servers that hold devices, by device."""
        if holders is None:
            return {}
        me = self._me()
        elsewhere = {
            device_id: [holder.server for holder in found if holder.server != me]
            for device_id, found in holders.result().items()
        }
        if not self._has_mailbox and self._hub.has_stand_bys:
            # One of a device's connections gets the message: one of those that are here, else the oldest.
            return {device_id: servers[:1] for device_id, servers in elsewhere.items()}
        return elsewhere
