"""From settings to what is in force: at the start, and at a reload. Nothing here takes effect by itself."""

from __future__ import annotations

import dataclasses

from .errors import SharedSecret
from .identity.key_store import KeySources, KeyStore
from .live import Snapshot
from .rules.hosts import allowed_hosts
from .service_options import audio_limits, device_limits, slot_limits, speech_limits
from .service_parts import admin_key_sources, admin_key_store, key_sources, make_signer, make_tls
from .settings.table import Settings


def snapshot(settings: Settings, sources: KeySources, keys: KeyStore, admin_keys: KeyStore | None) -> Snapshot:
    """Read the signing key and the certificate.

    :param sources: where ``keys`` come from
    :raises KeyMaterialError: there is no key that could sign, though the token endpoint is on
    :raises ServiceError: the certificate cannot be used
    """
    return Snapshot(
        keys=keys,
        admin_keys=admin_keys,
        signer=make_signer(settings, sources),
        credentials=dict(settings.api_credentials),
        allowed_origins=settings.allowed_origins,
        hosts=allowed_hosts(
            settings.allowed_hosts,
            (settings.host, settings.admin_host),
            is_development=settings.uses_development_key,
        ),
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
    new = snapshot(settings, sources, before.keys, None)
    keys = await before.keys.successor(sources)
    admin_keys = await _admin_successor(before.admin_keys, settings, sources)
    check_secrets(settings, keys, admin_keys)
    return dataclasses.replace(new, keys=keys, admin_keys=admin_keys)


async def _admin_successor(before: KeyStore | None, settings: Settings, sources: KeySources) -> KeyStore | None:
    if before is None:
        store = admin_key_store(settings, sources)
        if store is not None:
            await store.read()
        return store
    admin_sources = admin_key_sources(settings, sources)
    return None if admin_sources is None else await before.successor(admin_sources)


def check_secrets(settings: Settings, keys: KeyStore, admin_keys: KeyStore | None) -> None:
    """Compare what has been read: settings alone do not show the development key, nor the secrets in key files.

    :raises SharedSecret: who may sign device tokens could sign admin tokens too
    """
    if admin_keys is not None and settings.has_admin_keys and admin_keys.shares_secret(keys):
        raise SharedSecret("admin_jwt_secret" if settings.admin_jwt_secret else "admin_jwt_key")
