"""The shared state of the checks of a run: the target, the devices, the open connection, and earlier results."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .between import no_upgrade
from .credentials import Device, Key, minted, random_device_id
from .delivery import BackendPublisher, RecordPublisher
from .device import Link, connect
from .judge import judge_handshake
from .judge_speech import SpeechResult
from .recording import Recording
from .target import Target
from .wire import Response, Upgrade

HELD = "a live device holds this id"
REPLACED = f"{HELD}: it has connected in the meantime"
CLOSE_REPLACED = 4409


class UnexpectedError(Exception):
    """A precondition of a check failed; ``str()`` is the problem, in the form of a judge's."""


class UpgradeLostError(UnexpectedError):
    """Handshakes do not reach the gateway, so they cannot be checked."""


class DeviceHeldError(UnexpectedError):
    """Another client is connected as this device. The probe does not disconnect it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits, in seconds.

    :ivar timeout_s: for each check
    :ivar challenge_s: for the gateway's challenge of an existing connection
    :ivar at_once_s: the delay that still counts as "at once", in addition to a handshake
    :ivar quiet_s: how long to wait for unexpected messages
    :ivar server_ping_s: the interval of the gateway's pings
    :ivar audio_s: for the speech engine
    """

    timeout_s: float = 5.0
    challenge_s: float = 2.0
    at_once_s: float = 1.0
    quiet_s: float = 0.5
    server_ping_s: float = 30.0
    audio_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Idleness:
    """The result of the idle check: how long the connection was held, and how many pings came."""

    held_s: float
    pings: int


@dataclass(slots=True)
class Session:
    """The state of a run. One event loop, one check at a time.

    :ivar also: the other servers of the deployment
    :ivar device: the device of the probe
    :ivar backend: publishes records that no device may publish, or None
    :ivar other: a second device, or None
    :ivar member: a device with a group of its own, or None
    :ivar key: the secret for signing further tokens, or None
    :ivar key_proven: whether the gateway has accepted a token of that key
    :ivar audio: the recording to send, or None
    :ivar on_progress: called with the seconds of the recording sent so far
    :ivar speech: the result of the recording, once it was answered with text
    :ivar link: the open connection of ``device``, or None
    :ivar blocked: why ``device`` can't connect any more; None while it can
    :ivar no_upgrade: why no handshake reaches the gateway; None if unknown
    :ivar pong_works: whether the gateway has answered a ping
    :ivar slots_leak: whether the gateway has kept a slot that it should have freed
    :ivar closing_since: when the gateway answered the close of the last connection (monotonic)
    :ivar handshake_s: the duration of a handshake
    """

    target: Target
    device: Device
    publisher: RecordPublisher
    limits: Limits = field(default_factory=Limits)
    backend: BackendPublisher | None = None
    other: Device | None = None
    member: Device | None = None
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
    speech: SpeechResult | None = None
    also: Sequence[Target] = ()

    async def connect(
        self, upgrade: Upgrade | None = None, target: Target | None = None
    ) -> tuple[Response, Link | None]:
        """Connect as the device, or with ``upgrade``, to the first server, or to ``target``. The response is
        unchecked."""
        return await connect(target or self.target, upgrade or self.upgrade())

    def upgrade(self) -> Upgrade:
        """The plain opening handshake of the device."""
        return Upgrade(self.device.token)

    async def hold(self) -> Link:
        """The device's connection, opened if there is none. A lost connection raises, and is not reopened.

        :raises DeviceHeldError: another client is connected as the device
        :raises UnexpectedError: the connection is refused
        :raises ConnectionLostError: the connection was lost since its last use
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

    async def opened(self, upgrade: Upgrade, selected: str | None = None, target: Target | None = None) -> Link:
        """Open a connection that must be admitted. Raises as :meth:`hold` does."""
        response, link = await self.connect(upgrade, target)
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
        """Close a connection with a closing handshake, within a second."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await link.close()

    async def let_go(self) -> None:
        """Close the device's connection, if it is open."""
        link = self.take_link()
        if link is not None:
            await self.close(link)

    def take_link(self) -> Link | None:
        """Detach and return the device's connection, if any; the caller must end it."""
        link, self.link = self.link, None
        self._renew()
        return link

    def give_up_device(self, reason: str) -> None:
        """The gateway does not free slots: use a new device for each connection, if the probe can mint tokens."""
        self.slots_leak = True
        if self.key is None or self.device.given:
            self.blocked = reason
        self._renew()

    def _renew(self) -> None:
        if self.slots_leak and self.key is not None and not self.device.given:
            self.device = minted(self.key, random_device_id(), time.time())

    def redacted(self, text: str) -> str:
        """Replace the tokens and secrets of this run in ``text``."""
        devices = [device for device in (self.device, self.other, self.member) if device is not None]
        for secret in [device.token for device in devices] + ([self.key.secret] if self.key else []):
            text = text.replace(secret, "***")
        return text
