"""From settings to a gateway's keys and certificate: the key stores, not read yet, the signer and the TLS context."""

from __future__ import annotations

import logging
import ssl

from ..errors import ServiceError
from ..identity.devkey import development_secret
from ..identity.key_store import KeyOptions, KeySources, KeyStore, default_signer
from ..identity.keys import ALGORITHMS, Signer
from ..rules.addresses import is_loopback
from ..settings.table import Settings

log = logging.getLogger("cocoa.service")


def key_sources(settings: Settings) -> KeySources:
    """The keys that verify tokens; if none is configured, the development key, announced prominently."""
    if not settings.uses_development_key:
        current = (settings.jwt_secret,) if settings.jwt_secret else ()
        return KeySources(secrets=(*current, *settings.jwt_previous_secrets), locations=settings.jwt_key)
    key = development_secret(settings.data_dir)
    log.warning(
        "DEVELOPMENT KEY IN USE: anyone who can read it can be any device",
        extra={"path": str(key.path), "new": key.created, "instead": "set COCOA_JWT_SECRET or COCOA_JWT_KEY"},
    )
    return KeySources(secrets=(key.secret, *settings.jwt_previous_secrets))


def key_store(settings: Settings, sources: KeySources) -> KeyStore:
    """The keys that verify tokens, not read yet."""
    options = KeyOptions(settings.jwt_algorithms, settings.jwks_refresh_s, weak_secrets=is_loopback(settings.host))
    return KeyStore(sources, settings.token_policy, options)


def admin_key_sources(settings: Settings, sources: KeySources) -> KeySources | None:
    """As for :func:`admin_key_store`."""
    if settings.has_admin_keys:
        secrets = (settings.admin_jwt_secret,) if settings.admin_jwt_secret else ()
        return KeySources(secrets, settings.admin_jwt_key)
    return KeySources(sources.secrets[:1]) if settings.uses_development_key else None


def admin_key_store(settings: Settings, sources: KeySources) -> KeyStore | None:
    """The keys that verify admin tokens, not read yet; None if the admin API is disabled.

    :param sources: of device tokens, which has the development key
    """
    admin_sources = admin_key_sources(settings, sources)
    if admin_sources is None:
        return None
    # A key's type alone decides its algorithms: jwt_algorithms is about the tokens of devices.
    options = KeyOptions(ALGORITHMS, settings.jwks_refresh_s, weak_secrets=settings.admin_is_on_loopback)
    return KeyStore(admin_sources, settings.token_policy, options)


def make_signer(settings: Settings, sources: KeySources) -> Signer | None:
    """The signer of new device tokens; None if the token endpoint is off, or only public keys are configured."""
    if not settings.api_credentials and not settings.enables_admin:
        return None
    if settings.jwt_signing_key is not None:
        return Signer.from_file(settings.jwt_signing_key).preferring(settings.jwt_algorithms)
    if not settings.jwt_secret and not settings.uses_development_key:
        # Previous secrets verify and never sign.
        sources = KeySources(locations=sources.locations)
    return default_signer(sources, settings.jwt_algorithms)


def make_tls(settings: Settings) -> ssl.SSLContext | None:
    """A context with the certificate that is on the disk now; None without TLS.

    :raises ServiceError: the certificate cannot be read, or the key is not its own
    """
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # A renegotiation costs the client nothing, and the gateway a handshake. OpenSSL 3 refuses it, 1.1.1 does not.
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        # Without a password, OpenSSL would stop and ask the terminal for that of an encrypted key.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (OSError, ssl.SSLError) as error:
        problem = error.strerror or type(error).__name__
        raise ServiceError(f"certificate {settings.tls_cert} and key {settings.tls_key}: {problem}") from error
    return context
