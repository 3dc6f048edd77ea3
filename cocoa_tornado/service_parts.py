"""From settings to the parts of a gateway, none of them started. The only module that names concrete adapters."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from .admin.block_file import BlockFile
from .admin.blocks import Blocks
from .brokers.kafka_settings import CONFLUENT
from .brokers.memory import MemoryBroker
from .brokers.port import Broker
from .connection.audio_session import AudioIntake
from .errors import KeyMaterialError, ServiceError
from .hub import Hub
from .identity.devkey import development_secret, user_data_dir
from .identity.key_store import KeyOptions, KeySources, KeyStore, default_signer
from .identity.keys import ALGORITHMS, Signer
from .mailboxes.memory import MemoryMailbox
from .mailboxes.port import Mailbox
from .mailboxes.sqlite_url import sqlite_path
from .presence.grants import SlotLimits
from .presence.local import LocalPresence, LocalStore
from .presence.port import Presence
from .redis_store.redis_url import database_of
from .relay.memory import MemoryRelay
from .relay.port import Relay
from .rules.addresses import is_loopback
from .rules.audio import undeclared
from .rules.upload import AudioLimits
from .rules.worker_count import count_workers
from .service_options import box_limits, kafka_options, membership_timing
from .settings.table import SPEECH_AUTO, SPEECH_OFF, Settings
from .speech.engines import MIB, engine_of, missing_module, worker_bytes
from .speech.machine import this_machine
from .speech.pool import PoolOptions, WorkerPool
from .transcriber import Transcriber

TOPICS = 3  # of the embedded broker: each has the same share

log = logging.getLogger("cocoa.service")


def audio_intake(transcriber: Transcriber, settings: Settings, limits: Callable[[], AudioLimits]) -> AudioIntake:
    """What becomes of binary messages."""
    # It loads the voice activity detector, which a gateway without speech need not have.
    from .speech.segmenter import Segmenter

    return AudioIntake(transcriber, undeclared(settings.raw_audio), Segmenter, limits)


def key_store(settings: Settings, sources: KeySources) -> KeyStore:
    """The keys that verify tokens, not read."""
    options = KeyOptions(settings.jwt_algorithms, settings.jwks_refresh_s, weak_secrets=is_loopback(settings.host))
    return KeyStore(sources, settings.token_policy, options)


def key_sources(settings: Settings) -> KeySources:
    """The keys that verify tokens; the development key where none is configured, announced loudly."""
    if not settings.uses_development_key:
        current = (settings.jwt_secret,) if settings.jwt_secret else ()
        return KeySources(secrets=(*current, *settings.jwt_previous_secrets), locations=settings.jwt_key)
    key = development_secret(settings.data_dir)
    log.warning(
        "DEVELOPMENT KEY IN USE: anyone who can read it can be any device",
        extra={"path": str(key.path), "new": key.created, "instead": "set COCOA_JWT_SECRET or COCOA_JWT_KEY"},
    )
    return KeySources(secrets=(key.secret, *settings.jwt_previous_secrets))


def admin_key_store(settings: Settings, sources: KeySources) -> KeyStore | None:
    """The keys that verify admin tokens, not read; None where the admin API is disabled.

    :param sources: of device tokens, which has the development key
    """
    admin_sources = admin_key_sources(settings, sources)
    if admin_sources is None:
        return None
    # A key's type alone decides its algorithms: jwt_algorithms is about the tokens of devices.
    options = KeyOptions(ALGORITHMS, settings.jwks_refresh_s, weak_secrets=settings.admin_is_on_loopback)
    return KeyStore(admin_sources, settings.token_policy, options)


def admin_key_sources(settings: Settings, sources: KeySources) -> KeySources | None:
    """As for :func:`admin_key_store`."""
    if settings.has_admin_keys:
        secrets = (settings.admin_jwt_secret,) if settings.admin_jwt_secret else ()
        return KeySources(secrets, settings.admin_jwt_key)
    return KeySources(sources.secrets[:1]) if settings.uses_development_key else None


def make_signer(settings: Settings, sources: KeySources) -> Signer | None:
    """What new device tokens are signed with; None where nobody may ask for one, or only public keys are configured."""
    if not settings.api_credentials and not settings.enables_admin:
        return None
    if settings.jwt_signing_key is not None:
        return Signer.from_file(settings.jwt_signing_key).preferring(settings.jwt_algorithms)
    if not settings.jwt_secret and not settings.uses_development_key:
        # Previous secrets verify and never sign.
        sources = KeySources(locations=sources.locations)
    return default_signer(sources, settings.jwt_algorithms)


def speech_url(settings: Settings) -> str:
    """The engine: what ``auto`` means is decided here, by what is installed."""
    if settings.speech != SPEECH_AUTO:
        return settings.speech
    embedded = "pocketsphinx://"
    return embedded if missing_module(engine_of(embedded)) is None else SPEECH_OFF


def make_engine(settings: Settings) -> WorkerPool | None:
    """The engine's pool of workers, not started; None where speech is off."""
    url = speech_url(settings)
    if url == SPEECH_OFF:
        return None
    return WorkerPool(
        PoolOptions(
            url=url,
            language=settings.speech_language,
            workers=_count_workers(settings, url),
            queue=settings.speech_queue,
            stall_s=settings.speech_stall_s,
        )
    )


def _count_workers(settings: Settings, url: str) -> int:
    """How many workers there are to be, and the log says why."""
    machine, size = this_machine().share(settings.workers), worker_bytes(engine_of(url))
    count = count_workers(settings.speech_workers, machine, size)
    extra = {
        "workers": count.workers,
        "limit": count.limit,
        "processors": machine.processors,
        "memory_mib": None if machine.memory_bytes is None else machine.memory_bytes // MIB,
        "worker_mib": size // MIB,
    }
    if count.exceeds_memory:
        log.warning("speech workers exceed memory", extra={**extra, "fitting": count.fitting})
    else:
        log.info("speech workers counted", extra=extra)
    return count.workers


def make_mailbox(settings: Settings) -> Mailbox | None:
    """The mailbox, not started; None without one."""
    scheme = settings.mailbox.partition("://")[0]
    limits = box_limits(settings)
    if scheme == "memory":
        return MemoryMailbox(limits)
    if scheme == "sqlite":
        from .mailboxes.sqlite import SqliteMailbox

        return SqliteMailbox(Path(sqlite_path(settings.mailbox)), limits)
    if database_of(settings.mailbox) is not None:
        from .mailboxes.redis import RedisMailbox

        return RedisMailbox(settings.mailbox, limits, rings=settings.shares_presence)
    return None


def make_blocks(settings: Settings, hub: Hub) -> Blocks:
    """The devices that are blocked, not read. They are kept where all servers find them, and a restart does: in Redis
    if presence or the mailbox is there, else beside the SQLite mailbox, else in the data directory."""
    url = settings.presence if settings.shares_presence else settings.mailbox
    if settings.shares_presence or database_of(settings.mailbox) is not None:
        from .admin.block_redis import BlockRedis

        return Blocks(BlockRedis(url), hub, time.time)
    return Blocks(BlockFile(_block_file(settings)), hub, time.time)


def _block_file(settings: Settings) -> Path | None:
    if settings.mailbox.startswith("sqlite:"):
        path = Path(sqlite_path(settings.mailbox))
        return path.with_name(f"{path.name}-blocked.json")
    try:
        return (settings.data_dir or user_data_dir()) / "blocked.json"
    except KeyMaterialError:
        return None


def make_relay(settings: Settings) -> Relay:
    """The relay for :func:`make_presence`, which begins and ends its addresses."""
    if settings.shares_presence:
        from .presence.redis import lease_clock
        from .relay.redis import RedisRelay

        return RedisRelay(settings.presence, lease_clock())
    return MemoryRelay()


def make_presence(settings: Settings, relay: Relay, clock: Callable[[], float], name: Callable[[], str]) -> Presence:
    """Presence, not started, with the limits of :class:`SlotLimits` itself.

    :param name: of this server, once it listens
    """
    if settings.shares_presence:
        from .presence.redis import RedisPresence

        return RedisPresence(settings.presence, SlotLimits, relay, membership_timing(settings), name)
    # A later process has a greater term, so that no generation is given twice.
    return LocalPresence(SlotLimits, relay, clock, LocalStore(term=int(time.time() * 1000)))


def kafka_client(settings: Settings) -> str | None:
    """The library that Kafka is read with; None with the embedded broker."""
    if not settings.broker_servers:
        return None
    if settings.kafka_client != "auto":
        return settings.kafka_client
    return "confluent" if CONFLUENT.missing() is None else "kafka-python"


def make_broker(settings: Settings) -> Broker:
    if settings.has_embedded_broker:
        return MemoryBroker(
            high_water=settings.high_water,
            low_water=settings.low_water,
            high_water_bytes=settings.buffers["handoff"],
            retained_bytes=settings.buffers["log"] // TOPICS,
            results_topic=settings.kafka_results_topic,
            quarantine_topic=settings.kafka_quarantine_topic,
        )
    # One of the two is there for certain, and each is slow to import: the embedded broker needs neither.
    if kafka_client(settings) == "confluent":
        from .brokers.confluent import ConfluentBroker

        return ConfluentBroker(kafka_options(settings))
    from .brokers.kafka import KafkaBroker

    return KafkaBroker(kafka_options(settings))


def kafka_security(settings: Settings) -> dict[str, object]:
    """TLS and SASL, as keyword arguments of kafka-python's clients. BrokerError where a file cannot be used."""
    from .brokers.kafka_clients import KafkaClients

    return KafkaClients(kafka_options(settings)).security()


def make_tls(settings: Settings) -> ssl.SSLContext | None:
    """A context with the certificate as it is on the disk now; None in the clear.

    :raises ServiceError: the certificate cannot be read, or the key is not its own
    """
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # A renegotiation costs the client nothing and the gateway a handshake. OpenSSL 3 refuses it, 1.1.1 does not.
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        # Without a password, OpenSSL would stop and ask the terminal for that of an encrypted key.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (OSError, ssl.SSLError) as error:
        problem = error.strerror or type(error).__name__
        raise ServiceError(f"certificate {settings.tls_cert} and key {settings.tls_key}: {problem}") from error
    return context
