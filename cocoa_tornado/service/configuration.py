"""The settings of one gateway, and the snapshot made from them: at its start, and after each reload."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

from ..errors import KeyMaterialError, ServiceError, SettingError, SharedSecret
from ..identity.key_store import KeySources, KeyStore
from ..live import Live, Snapshot
from ..logs import set_level
from ..rules.hosts import allowed_hosts
from ..settings.sources import changes, reloaded
from ..settings.table import Settings
from .keys import admin_key_sources, admin_key_store, key_sources, key_store, make_signer, make_tls
from .options import audio_limits, device_limits, slot_limits, speech_limits

log = logging.getLogger("cocoa.service")


class Configuration:
    """Has the signing key and the certificate from the beginning, and the keys that verify tokens once
    :meth:`read_keys` has returned. IOLoop thread only.

    :ivar settings: those of the start, with what later reloads have changed
    :ivar live: the current snapshot
    :raises KeyMaterialError: there is no key that could sign, though the token endpoint is on
    :raises ServiceError: the certificate cannot be used
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        sources = key_sources(settings)
        admin_keys = admin_key_store(settings, sources)
        self.live = Live(_snapshot(settings, sources, key_store(settings, sources), admin_keys))
        self._reloading = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Configuration {self.live!r}>"

    async def read_keys(self) -> None:
        """Read the keys of devices and operators, and refresh those of URLs from now on.

        :raises KeyMaterialError: no key can be used
        :raises SharedSecret: see :func:`_check_secrets`
        """
        now = self.live.now
        await now.keys.start()
        if now.admin_keys is not None:
            await now.admin_keys.start()
        _check_secrets(self.settings, now.keys, now.admin_keys)

    async def close_keys(self) -> None:
        """Stop refreshing keys. The known ones remain valid."""
        # A reload under way would begin to read URLs afterwards.
        async with self._reloading:
            now = self.live.now
            await now.keys.close()
            if now.admin_keys is not None:
                await now.admin_keys.close()

    async def reload(self, settings: Settings) -> None:
        """Apply the settings that may change while running: keys, limits, origins, credentials, log level, certificate.

        If anything is invalid, nothing changes, and the log has the reason. Calls run one at a time, in order.
        """
        async with self._reloading:
            await self._reload(settings)

    async def _reload(self, settings: Settings) -> None:
        before = self.live.now
        applied, ignored = changes(self.settings, settings)
        try:
            settings = reloaded(self.settings, settings)
            new = await _successor(before, settings)
        except (SettingError, KeyMaterialError, ServiceError) as error:
            log.error("reload refused", extra={"error": str(error)})
            return
        self.live.now, self.settings = new, settings
        set_level(settings.log_level)
        await new.keys.succeed(before.keys)
        await _succeed(new.admin_keys, before.admin_keys)
        log.info("reloaded", extra={"applied": ",".join(applied) or "nothing new", "needs_restart": ",".join(ignored)})


def _snapshot(settings: Settings, sources: KeySources, keys: KeyStore, admin_keys: KeyStore | None) -> Snapshot:
    """Read the signing key and the certificate.

    :param sources: where ``keys`` come from
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


async def _successor(before: Snapshot, settings: Settings) -> Snapshot:
    """Read everything again: keys, including those of URLs, which may take seconds, and the certificate. ``before`` is
    unchanged, and nothing takes effect.

    :raises KeyMaterialError: a key cannot be used
    :raises ServiceError: the certificate cannot be used
    """
    sources = key_sources(settings)
    # First the parts that are read immediately: nothing may fail after the keys have been read.
    new = _snapshot(settings, sources, before.keys, None)
    keys = await before.keys.successor(sources)
    admin_keys = await _admin_successor(before.admin_keys, settings, sources)
    _check_secrets(settings, keys, admin_keys)
    return dataclasses.replace(new, keys=keys, admin_keys=admin_keys)


async def _admin_successor(before: KeyStore | None, settings: Settings, sources: KeySources) -> KeyStore | None:
    if before is None:
        store = admin_key_store(settings, sources)
        if store is not None:
            await store.read()
        return store
    admin_sources = admin_key_sources(settings, sources)
    return None if admin_sources is None else await before.successor(admin_sources)


async def _succeed(new: KeyStore | None, before: KeyStore | None) -> None:
    """Replace the keys of operators; a reload may enable and disable the admin API."""
    if new is None:
        if before is not None:
            await before.close()
    elif before is None:
        new.follow()
    else:
        await new.succeed(before)


def _check_secrets(settings: Settings, keys: KeyStore, admin_keys: KeyStore | None) -> None:
    """Compare the keys that were read: settings alone show neither the development key nor the secrets in key files.

    :raises SharedSecret: a client that can sign device tokens could sign admin tokens too
    """
    if admin_keys is not None and settings.has_admin_keys and admin_keys.shares_secret(keys):
        raise SharedSecret("admin_jwt_secret" if settings.admin_jwt_secret else "admin_jwt_key")
