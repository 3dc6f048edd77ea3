"""What the checks of one run share: the target, the devices, the connection that is held, and what was learnt."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .between import no_upgrade
from .credentials import Device, Key, minted, random_device_id
from .delivery import Publisher
from .device import Link, connect
from .judge import judge_handshake
from .judge_speech import Heard
from .recording import Recording
from .target import Target
from .wire import Response, Upgrade

HELD = "a live device holds this id"
REPLACED = f"{HELD}: it has connected in the meantime"
CLOSE_REPLACED = 4409


class UnexpectedError(Exception):
    """Something that a check builds on went wrong; ``str()`` is the problem, as a judge would say it."""


class UpgradeLostError(UnexpectedError):
    """A handshake does not reach the gateway as one, so that nothing can be said of any."""


class DeviceHeldError(UnexpectedError):
    """Somebody else is connected as this device. The probe gives way."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Times, in seconds.

    :ivar timeout_s: for each check
    :ivar challenge_s: how long a gateway may take to find out whether an incumbent is alive
    :ivar at_once_s: what passes for "at once", on top of what a handshake takes
    :ivar quiet_s: for how long a device must have got nothing to have got nothing
    :ivar server_ping_s: how often the gateway pings
    :ivar audio_s: how long the speech engine may take
    """

    timeout_s: float = 5.0
    challenge_s: float = 2.0
    at_once_s: float = 1.0
    quiet_s: float = 0.5
    server_ping_s: float = 30.0
    audio_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Idleness:
    """What the idle check saw: the longest it could have waited, and how many pings came."""

    held_s: float
    pings: int


@dataclass(slots=True)
class Session:
    """The state of one run; one event loop, one check at a time.

    :ivar device: the device that the probe plays
    :ivar other: a second one, or None
    :ivar key: the secret to sign further tokens with, or None
    :ivar key_proven: the gateway has accepted a token of that key
    :ivar audio: speech to send, or None
    :ivar on_progress: called with the seconds of it that are sent
    :ivar heard: what became of it, once it has been answered with words
    :ivar link: the connection that ``device`` holds
    :ivar blocked: why ``device`` can't connect any more; None while it can
    :ivar no_upgrade: why no handshake reaches the gateway; None as long as that isn't known
    :ivar pong_works: the gateway answers pings; False until it has been seen to
    :ivar slots_leak: the gateway has kept a slot that it should have freed
    :ivar closing_since: when the gateway had answered the close of the connection that was last held (monotonic)
    :ivar handshake_s: what a handshake takes
    """

    target: Target
    device: Device
    publisher: Publisher
    limits: Limits = field(default_factory=Limits)
    other: Device | None = None
    key: Key | None = None
    key_proven: bool = False
    idle_s: float = 0.0
    audio: Recording | None = None
    on_progress: Callable[[float], None] = lambda sent_s: None
    take_over: bool = False
    link: Link | None = None
    blocked: str | None = None
    no_upgrade: str | None = None
    pong_works: bool = False
    slots_leak: bool = False
    handshake_s: float = 0.0
    closing_since: float | None = None
    idleness: Idleness | None = None
    heard: Heard | None = None

    async def connect(self, upgrade: Upgrade | None = None) -> tuple[Response, Link | None]:
        """Connect as the device, or however ``upgrade`` says. The response is the caller's to judge."""
        return await connect(self.target, upgrade or self.upgrade())

    def upgrade(self) -> Upgrade:
        """The plain opening handshake of the device."""
        return Upgrade(self.device.token)

    async def hold(self) -> Link:
        """The device's connection; opened if there is none.

        A connection that was lost since it was last used is a problem, and not reopened silently. Raises
        :class:`DeviceHeldError` where another has taken the place, :class:`UnexpectedError` where it isn't opened.
        """
        if self.link is not None and self.link.is_open:
            return self.link
        if self.link is not None:
            lost = self.link.lost()
            await self.let_go()
            if lost.code == CLOSE_REPLACED:
                raise DeviceHeldError(REPLACED)
            raise lost
        self.link = await self.opened(self.upgrade())
        return self.link

    async def opened(self, upgrade: Upgrade, selected: str | None = None) -> Link:
        """Open a connection that must be admitted. Raises as :meth:`hold` does."""
        response, link = await self.connect(upgrade)
        if response.status == 409:
            raise DeviceHeldError(HELD)
        if problem := judge_handshake(response, upgrade, selected):
            if link is not None:
                await self.close(link)
            if diagnosis := no_upgrade(response):
                raise UpgradeLostError(diagnosis)
            raise UnexpectedError(problem)
        assert link is not None  # a 101 always comes with one
        return link

    async def close(self, link: Link) -> None:
        """Close a connection in due form, or at least within a second."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await link.close()

    async def let_go(self) -> None:
        """Close the device's connection, if it holds one."""
        link = self.take_link()
        if link is not None:
            await self.close(link)

    def take_link(self) -> Link | None:
        """The device's connection, if it holds one; from now on it is the caller's to end."""
        link, self.link = self.link, None
        self._renew()
        return link

    def give_up_device(self, reason: str) -> None:
        """The gateway does not free slots: go on as a fresh device each time, where the probe can make them."""
        self.slots_leak = True
        if self.key is None or self.device.given:
            self.blocked = reason
        self._renew()

    def _renew(self) -> None:
        if self.slots_leak and self.key is not None and not self.device.given:
            self.device = minted(self.key, random_device_id(), time.time())

    def redacted(self, text: str) -> str:
        """The text without any token or secret that this run knows."""
        known = [self.device.token, self.other.token if self.other else "", self.key.secret if self.key else ""]
        for secret in filter(None, known):
            text = text.replace(secret, "***")
        return text
