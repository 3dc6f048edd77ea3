"""From settings to what is in force: at the start, and at a reload. Nothing here takes effect by itself."""

from __future__ import annotations

import dataclasses

from .identity.key_store import KeySources, KeyStore
from .live import Snapshot
from .service_options import audio_limits, device_limits, slot_limits, speech_limits
from .service_parts import key_sources, make_signer, make_tls
from .settings.table import Settings


def snapshot(settings: Settings, sources: KeySources, keys: KeyStore) -> Snapshot:
    """Read the signing key and the certificate.

    :param sources: where ``keys`` come from
    :raises KeyMaterialError: there is no key that could sign, though the token endpoint is on
    :raises ServiceError: the certificate cannot be used
    """
    return Snapshot(
        keys=keys,
        signer=make_signer(settings, sources),
        credentials=dict(settings.api_credentials),
        allowed_origins=settings.allowed_origins,
        tls=make_tls(settings),
        devices=device_limits(settings),
        slots=slot_limits(settings),
        speech=speech_limits(settings),
        audio=audio_limits(settings),
    )


async def successor(before: Snapshot, settings: Settings) -> Snapshot:
    """Read everything again: keys, of URLs too, which may take seconds, and certificate. ``before`` stays as it is.

    :raises KeyMaterialError: a key cannot be used
    :raises ServiceError: the certificate cannot be used
    """
    sources = key_sources(settings)
    # First what is read at once: nothing may fail any more when the keys have been read.
    new = snapshot(settings, sources, before.keys)
    return dataclasses.replace(new, keys=await before.keys.successor(sources))
