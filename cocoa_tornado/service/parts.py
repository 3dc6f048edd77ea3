"""From settings to the parts of a gateway, none of them started. The only module that names concrete adapters."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..admin.block_file import BlockFile
from ..admin.blocks import Blocks
from ..brokers.kafka_settings import CONFLUENT
from ..brokers.memory import MemoryBroker
from ..brokers.port import Broker
from ..canaries import Canaries
from ..connection.audio_session import AudioIntake
from ..counters import Counters
from ..errors import KeyMaterialError
from ..hub import Hub
from ..identity.devkey import user_data_dir
from ..live import Live
from ..mailboxes.memory import MemoryMailbox
from ..mailboxes.port import Mailbox
from ..mailboxes.sqlite_url import sqlite_path
from ..presence.grants import SlotLimits
from ..presence.local import LocalPresence, LocalStore
from ..presence.port import Presence
from ..redis_store.redis_url import database_of
from ..relay.memory import MemoryRelay
from ..relay.port import Relay
from ..rules.audio import undeclared
from ..rules.trace_memory import TraceMemory
from ..rules.upload import AudioLimits
from ..rules.worker_count import count_workers
from ..settings.table import SPEECH_AUTO, SPEECH_OFF, Settings
from ..speech.engines import MIB, engine_of, missing_module, worker_bytes
from ..speech.machine import this_machine
from ..speech.pool import PoolOptions, WorkerPool
from ..speech.port import SpeechEngine
from ..transcriber import Transcriber
from ..web.turns import loop_clock
from .configuration import Configuration
from .listeners import Listeners
from .options import box_limits, kafka_options, membership_timing

TOPICS = 3  # of the embedded broker: each has the same share

log = logging.getLogger("cocoa.service")


@dataclass(frozen=True, slots=True)
class Replaced:
    """Parts to use instead of those that the settings name; None: according to the settings."""

    broker: Broker | None = None
    engine: SpeechEngine | None = None
    mailbox: Mailbox | None = None
    presence: Presence | None = None
    relay: Relay | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one gateway that are made before there is an IOLoop. ``wiring.py`` makes the rest.

    :ivar clock: monotonic seconds; :ivar wall_clock: Unix seconds
    :ivar memory: the trace memory; None: nothing is remembered
    :ivar engine: None while speech is off
    :ivar mailbox: None without one
    :ivar canaries: None without them
    """

    configuration: Configuration
    listeners: Listeners
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    memory: TraceMemory | None
    counters: Counters
    hub: Hub
    blocks: Blocks
    relay: Relay
    presence: Presence
    broker: Broker
    engine: SpeechEngine | None
    mailbox: Mailbox | None
    canaries: Canaries | None

    @property
    def settings(self) -> Settings:
        """The current settings."""
        return self.configuration.settings

    @property
    def live(self) -> Live:
        """The snapshot that a reload replaces."""
        return self.configuration.live


def make_parts(settings: Settings, replaced: Replaced, *, is_worker: bool) -> Parts:
    """Make all of them.

    :param is_worker: other workers listen on the same port
    :raises KeyMaterialError: there is no key that could sign, though the token endpoint is on
    :raises ServiceError: the certificate cannot be used
    """
    configuration = Configuration(settings)
    live, clock, wall_clock = configuration.live, loop_clock(), time.time
    remembers = settings.trace_bytes > 0 and settings.enables_admin
    counters, hub = Counters(), Hub(settings.connection_delivery)
    listeners = Listeners(configuration, counters, hub, is_shared=is_worker)
    blocks = make_blocks(settings, hub)
    relay = replaced.relay or make_relay(settings)
    presence = replaced.presence or make_presence(settings, relay, clock, listeners.server_name)
    presence.limits = lambda: live.now.slots
    broker = make_broker(settings) if replaced.broker is None else replaced.broker
    return Parts(
        configuration=configuration,
        listeners=listeners,
        clock=clock,
        wall_clock=wall_clock,
        memory=TraceMemory(settings.trace_bytes, wall_clock) if remembers else None,
        counters=counters,
        hub=hub,
        blocks=blocks,
        relay=relay,
        presence=presence,
        broker=broker,
        engine=make_engine(settings) if replaced.engine is None else replaced.engine,
        mailbox=make_mailbox(settings) if replaced.mailbox is None else replaced.mailbox,
        canaries=_make_canaries(settings, hub, presence, broker, counters, clock),
    )


def audio_intake(transcriber: Transcriber, settings: Settings, limits: Callable[[], AudioLimits]) -> AudioIntake:
    """The intake of binary messages."""
    # The import loads the voice activity detector, which a gateway without speech may lack.
    from ..speech.segmenter import Segmenter

    return AudioIntake(transcriber, undeclared(settings.raw_audio), Segmenter, limits)


def speech_url(settings: Settings) -> str:
    """The URL of the engine; ``auto`` depends on the installed libraries."""
    if settings.speech != SPEECH_AUTO:
        return settings.speech
    embedded = "pocketsphinx://"
    return embedded if missing_module(engine_of(embedded)) is None else SPEECH_OFF


def make_engine(settings: Settings) -> WorkerPool | None:
    """The engine's pool of workers, not started; None if speech is off."""
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
    """The number of workers; the log has the reason."""
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


def _make_canaries(
    settings: Settings,
    hub: Hub,
    presence: Presence,
    broker: Broker,
    counters: Counters,
    clock: Callable[[], float],
) -> Canaries | None:
    if not settings.canary_interval_s:
        return None
    topic, interval_s = settings.kafka_results_topic, settings.canary_interval_s
    return Canaries(hub, presence, broker, counters.canary, topic, interval_s, clock, time.time)


def make_mailbox(settings: Settings) -> Mailbox | None:
    """The mailbox, not started; None without one."""
    scheme = settings.mailbox.partition("://")[0]
    limits = box_limits(settings)
    if scheme == "memory":
        return MemoryMailbox(limits)
    if scheme == "sqlite":
        from ..mailboxes.sqlite import SqliteMailbox

        return SqliteMailbox(Path(sqlite_path(settings.mailbox)), limits)
    if database_of(settings.mailbox) is not None:
        from ..mailboxes.redis import RedisMailbox

        return RedisMailbox(settings.mailbox, limits, rings=settings.shares_presence)
    return None


def make_blocks(settings: Settings, hub: Hub) -> Blocks:
    """The blocked devices, not read yet. Their store is shared by all servers and survives restarts: Redis if presence
    or the mailbox uses it, else a file beside the SQLite mailbox, else one in the data directory."""
    url = settings.presence if settings.shares_presence else settings.mailbox
    if settings.shares_presence or database_of(settings.mailbox) is not None:
        from ..admin.block_redis import BlockRedis

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
        from ..presence.redis import lease_clock
        from ..relay.redis import RedisRelay

        return RedisRelay(settings.presence, lease_clock())
    return MemoryRelay()


def make_presence(settings: Settings, relay: Relay, clock: Callable[[], float], name: Callable[[], str]) -> Presence:
    """Presence, not started, with the limits of :class:`SlotLimits` itself.

    :param name: of this server, once it listens
    """
    if settings.shares_presence:
        from ..presence.redis import RedisPresence

        return RedisPresence(settings.presence, SlotLimits, relay, membership_timing(settings), name)
    # A later process has a greater term, so that no generation repeats.
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
    # One of the two is always installed, and each is slow to import; the embedded broker needs neither.
    if kafka_client(settings) == "confluent":
        from ..brokers.confluent import ConfluentBroker

        return ConfluentBroker(kafka_options(settings))
    from ..brokers.kafka import KafkaBroker

    return KafkaBroker(kafka_options(settings))


def kafka_security(settings: Settings) -> dict[str, object]:
    """TLS and SASL, as keyword arguments of kafka-python's clients. BrokerError if a file cannot be used."""
    from ..brokers.kafka_clients import KafkaClients

    return KafkaClients(kafka_options(settings)).security()
