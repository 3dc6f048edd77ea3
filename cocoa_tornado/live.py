"""The values that a reload changes, as one snapshot: replaced in one assignment, or not at all."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .connection.limits import DeviceLimits
from .identity.key_store import KeyStore
from .identity.keys import Signer
from .presence.grants import SlotLimits
from .rules.hosts import AllowedHosts
from .rules.upload import AudioLimits
from .transcriber import SpeechLimits


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The values between two reloads.

    :ivar keys: verify tokens; keys of URLs change within the store, without a reload
    :ivar admin_keys: verify admin tokens; None: the admin API is disabled
    :ivar signer: signs new device tokens; None: the token endpoint is off, or there are only public keys
    :ivar credentials: API secrets by key, for the token endpoint
    :ivar hosts: by which names pages, monitoring and operators may ask
    :ivar tls: for new connections; None: without TLS
    """

    keys: KeyStore
    admin_keys: KeyStore | None
    signer: Signer | None = field(repr=False)
    credentials: Mapping[str, str] = field(repr=False)
    allowed_origins: Sequence[str]
    hosts: AllowedHosts
    tls: ssl.SSLContext | None
    devices: DeviceLimits
    slots: SlotLimits
    speech: SpeechLimits
    audio: AudioLimits


class Live:
    """The current snapshot, read as ``live.now`` each time it is needed. Only the composition root replaces it.

    Parts that need a single field are given a function that returns it.
    """

    __slots__ = ("now",)

    def __init__(self, now: Snapshot) -> None:
        self.now = now

    def __repr__(self) -> str:
        return f"<Live {self.now!r}>"
