"""The composition root: makes one gateway out of settings, and carries it through its life.

The only module that names concrete adapters. ``Gateway`` is one whole gateway in one process, with nothing global: a
test may run two side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from .brokers.kafka_settings import CONFLUENT
from .brokers.memory import MemoryBroker
from .brokers.port import Batch, Broker
from .connection.audio_session import AudioIntake
from .connection.device_context import DeviceContext
from .connection.feed import Mail
from .connection.flusher import Flushed, Flusher, Housekeeping
from .connection.intake import IntakeGate
from .connection.keepalive import ExpiryCalendar, PingWheel
from .counters import Counters
from .errors import KeyMaterialError, ServiceError, SettingError
from .hub import Hub
from .identity.devkey import development_secret
from .identity.jwks import KeyOptions, KeySources, KeyStore, default_signer
from .identity.keys import Signer
from .logs import lines_lost, set_level
from .mailboxes.memory import MemoryMailbox
from .mailboxes.port import Mailbox, MailboxState
from .mailboxes.sqlite_url import sqlite_path
from .metrics import GatewayCollector, MetricsPage
from .presence.local import LocalPresence, LocalStore
from .presence.port import Presence
from .relay.memory import MemoryRelay
from .relay.port import Relay
from .routing.arrivals import Arrivals
from .routing.router import Router
from .rules.addresses import is_loopback, without_user_info
from .rules.audio import unsaid
from .rules.buffers import Use
from .rules.byte_budget import ByteBudget
from .rules.close_codes import GOING_AWAY
from .rules.records import decode
from .rules.worker_count import count_workers
from .service_options import (
    audio_limits,
    box_limits,
    device_limits,
    kafka_options,
    listener_options,
    slot_limits,
    speech_limits,
)
from .settings.sources import changes, reloaded
from .settings.table import SPEECH_AUTO, SPEECH_OFF, Settings
from .speech.engines import MIB, engine_of, missing_module, worker_bytes
from .speech.machine import this_machine
from .speech.pool import PoolOptions, WorkerPool
from .speech.port import SpeechEngine
from .sweeper import Sweeper
from .transcriber import Transcriber
from .web.application import RequestFilter, make_application
from .web.audio_context import AudioContext
from .web.handlers import WebContext
from .web.listener import Listener, bind
from .web.revocation import Revocation
from .web.streams import write_progress_is_visible
from .web.turns import loop_clock, new_event_loop

SHARE_OF_GRACE_FOR_SPEECH = 0.5
SHARE_OF_GRACE_FOR_DEVICES = 0.6
FAILED_START_S = 1.0
TOPICS = 3  # of the embedded broker: each has the same share

log = logging.getLogger("cocoa.service")


class Gateway:
    """One gateway. Built, started, drained and stopped on one IOLoop.

    :param broker: instead of the one that the settings name; for tests
    :param engine: likewise
    :param mailbox: likewise
    :param presence: likewise, not started
    :param relay: likewise, the one that ``presence`` uses
    """

    def __init__(
        self,
        settings: Settings,
        broker: Broker | None = None,
        engine: SpeechEngine | None = None,
        mailbox: Mailbox | None = None,
        presence: Presence | None = None,
        relay: Relay | None = None,
    ) -> None:
        self.settings = settings
        self._clock = loop_clock()
        self._wall_clock = time.time
        self.counters = Counters()
        self.hub = Hub()
        self.relay = MemoryRelay() if relay is None else relay
        self.presence = make_presence(settings, self.relay, self._clock) if presence is None else presence
        self.presence.limits = slot_limits(settings)
        self.broker = make_broker(settings) if broker is None else broker
        self.engine = make_engine(settings) if engine is None else engine
        self.mailbox = make_mailbox(settings) if mailbox is None else mailbox
        self.transcriber: Transcriber | None = None
        self._policy = settings.token_policy
        self._sources = key_sources(settings)
        options = KeyOptions(settings.jwt_algorithms, settings.jwks_refresh_s, weak_secrets=is_loopback(settings.host))
        self.keys = KeyStore(self._sources, self._policy, options)
        self._tls = make_tls(settings)
        self._listener: Listener | None = None
        self._housekeeping: Housekeeping | None = None
        self._devices: DeviceContext | None = None
        self._revocation: Revocation | None = None
        self._web: WebContext | None = None
        self._opened = contextlib.AsyncExitStack()
        self._deadline = math.inf
        self._connections_cut = 0
        self._stopping: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()
        self.port = 0

    def __repr__(self) -> str:
        return f"<Gateway {self.url} {self.hub!r}>"

    @property
    def url(self) -> str:
        """Where it listens: ``http://127.0.0.1:8080``."""
        scheme, host = ("https" if self._tls else "http"), self.settings.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Read the keys, bind the port, start consuming. The broker may be away.

        May be cancelled. Whoever sees it fail has nothing to stop.

        :raises KeyMaterialError: no key can be used
        :raises ServiceError: the port cannot be had, or the mailbox can never be used
        """
        try:
            await self._open()
        except BaseException:
            self._deadline = self._clock() + FAILED_START_S
            await self._opened.aclose()
            raise
        speech = SPEECH_OFF if self.engine is None else speech_url(self.settings)
        extra = {"url": self.url, "broker": self.settings.broker, "speech": speech}
        client = kafka_client(self.settings)
        if client is not None:
            extra["kafka_client"] = client
        log.info("listening", extra=extra)

    async def _open(self) -> None:
        """Open the parts, each after those that it needs while it closes. They are closed in reverse, however far the
        start has come, so what ends a part is noted before the part is opened."""
        opened = self._opened
        front = self._compose()
        self._adapt_to_tornado()
        assert self._devices is not None
        assert self._housekeeping is not None
        assert self._revocation is not None
        opened.callback(self._housekeeping.stop)
        self._housekeeping.start()
        opened.callback(self._revocation.stop)
        opened.push_async_callback(self.keys.close)
        await self.keys.start()
        options = listener_options(self.settings)
        self._listener = listener = Listener(front, options, self._tls, self.counters, lambda: len(self.hub))
        opened.push_async_callback(self._in_time, listener.close_connections, 1.0)
        # Once presence is closed, other servers may hold this one's devices.
        opened.push_async_callback(self._within, self.relay.close)
        opened.push_async_callback(self._within, self.presence.close)
        self.presence.start(self.hub)
        if self.mailbox is not None:
            opened.push_async_callback(self._within, self.mailbox.close)
            await self._open_mailbox(self.mailbox)
        sockets = bind(self.settings.host, self.settings.port)
        self.port = sockets[0].getsockname()[1]
        opened.push_async_callback(self._within, self.broker.close)
        # Half of what is left: to flush needs time as well.
        opened.push_async_callback(self._in_time, self._devices.intake.settled, 0.5)
        opened.callback(listener.stop)
        listener.start(sockets)
        opened.push_async_callback(self._close_devices)
        opened.push_async_callback(self._in_time, self.broker.stop_consuming, 1.0)
        if self.engine is not None:
            self.engine.start()
        if self.transcriber is not None:
            opened.push_async_callback(self._within, self.transcriber.drain, SHARE_OF_GRACE_FOR_SPEECH)
        self.broker.start(self._sink, decode)

    def _left_s(self, share: float = 1.0) -> float:
        """A share of the time until the gateway is to have stopped; never nothing at all."""
        return max(0.1, (self._deadline - self._clock()) * share)

    async def _within(self, close: Callable[[float], Awaitable[None]], share: float = 1.0) -> None:
        """Close a part that keeps to a time limit by itself."""
        await close(self._left_s(share))

    async def _in_time(self, close: Callable[[], Awaitable[None]], share: float) -> None:
        """Close a part, or give up when its share of the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._left_s(share)):
                await close()

    def _adapt_to_tornado(self) -> None:
        if not write_progress_is_visible():
            log.warning("write progress is not visible with this Tornado; large writes must end within the write wait")

    async def _open_mailbox(self, mailbox: Mailbox) -> None:
        await mailbox.start()
        sweeper = Sweeper(mailbox)
        self._opened.callback(sweeper.stop)
        sweeper.start()
        status = mailbox.status()
        extra: dict[str, object] = {"mailbox": without_user_info(self.settings.mailbox), "promise": status.detail}
        if status.state is MailboxState.READY:
            extra |= {"messages": status.messages, "bytes": status.size_bytes}
        log.info("mailbox", extra=extra | {"state": status.state.value})

    def _compose(self) -> RequestFilter:
        """The objects that live on the IOLoop, wired up."""
        settings, loop = self.settings, asyncio.get_running_loop()
        flusher = Flusher(loop, self._wall_clock, self.counters.latency)
        arrivals: Arrivals | None = None
        if self.engine is not None:
            arrivals = Arrivals(self._clock)
            self.transcriber = self._make_transcriber(self.engine, arrivals)
        self._sink: Callable[[Batch], None] = Router(
            self.hub,
            self.counters,
            self._clock,
            self.presence,
            self.relay,
            mailbox=self.mailbox,
            arrivals=arrivals,
        )
        wheel = PingWheel[Flushed](settings.ping_interval_s, settings.ping_timeout_s, self._clock())
        calendar = ExpiryCalendar[Flushed]()
        self._devices = DeviceContext(
            hub=self.hub,
            presence=self.presence,
            broker=self.broker,
            counters=self.counters,
            flusher=flusher,
            wheel=wheel,
            calendar=calendar,
            limits=device_limits(settings),
            messages_topic=settings.kafka_messages_topic,
            clock=self._clock,
            wall_clock=self._wall_clock,
            audio=None if self.transcriber is None else audio_intake(self.transcriber, settings),
            mail=None if self.mailbox is None else Mail(self.mailbox, self.counters, self._clock),
            intake=IntakeGate(settings.buffers["uplink"], self._clock, lambda: len(self.hub)),
        )
        self._revocation = Revocation(self.keys, self._devices.sockets)
        self.keys.on_distrust = self._revocation.start
        self._housekeeping = Housekeeping(
            wheel, calendar, flusher, self.counters, self._clock, self._wall_clock, self._devices.intake
        )
        engine = self.engine
        collector = GatewayCollector(
            self.hub,
            self.presence,
            self.counters,
            lambda: self.broker.counters,
            self.broker.status,
            lambda: self.http_connections,
            lambda: None if engine is None else engine.status(),
            engine.counters.lost if isinstance(engine, WorkerPool) else {},
            self.mailbox,
            (settings.kafka_results_topic, settings.kafka_messages_topic, settings.kafka_quarantine_topic),
            lines_lost,
            self.buffers,
        )
        self._web = WebContext(
            broker=self.broker,
            keys=self.keys,
            devices=self._devices,
            metrics=MetricsPage(collector),
            results_topic=settings.kafka_results_topic,
            http_publish=settings.publishes_over_http,
            allowed_origins=settings.allowed_origins,
            trusted_proxies=settings.trusted_proxies,
            retry_after_s=math.ceil(settings.retry_after_s),
            credentials=dict(settings.api_credentials),
            policy=self._policy,
            signer=make_signer(settings, self._sources),
            audio=None if self.transcriber is None else AudioContext(self.transcriber, audio_limits(settings)),
            bodies=ByteBudget(settings.buffers["bodies"]),
        )
        application = make_application(self._web, settings.access_log)
        return RequestFilter(application, self._web, settings.access_log)

    def buffers(self) -> dict[str, Use]:
        """What each part of ``buffer_bytes`` holds, and may hold."""
        held = dict(self.broker.held_bytes)
        if self._web is not None:
            held |= {"bodies": self._web.bodies.taken, "uplink": self._web.devices.intake.rule.total}
        return {part: Use(held.get(part), limit) for part, limit in self.settings.buffers.items()}

    def _make_transcriber(self, engine: SpeechEngine, arrivals: Arrivals) -> Transcriber:
        return Transcriber(
            engine,
            self.broker,
            arrivals,
            self.counters.speech,
            speech_limits(self.settings),
            results_topic=self.settings.kafka_results_topic,
            clock=self._clock,
            wall_clock=self._wall_clock,
        )

    @property
    def http_connections(self) -> int:
        """Connections that are not a device's, or not yet."""
        return 0 if self._listener is None else self._listener.pending

    async def reload(self, settings: Settings) -> None:
        """Take over what may change while running: keys, limits, origins, credentials, log level, certificate.

        Where anything is wrong, all of it stays as it was, and the log says why. One at a time, in the order called.
        """
        async with self._reloading:
            await self._reload(settings)

    async def _reload(self, settings: Settings) -> None:
        assert self._web is not None
        assert self._devices is not None
        applied, ignored = changes(self.settings, settings)
        try:
            settings = reloaded(self.settings, settings)
            sources = key_sources(settings)
            signer = make_signer(settings, sources)
            # A certificate that is refused must not leave new keys behind, nor the other way round: a trial now, and
            # once more when the keys have been read, which may take seconds.
            make_tls(settings)
            tls = self._tls
            await self.keys.reload(sources, (lambda: None) if tls is None else (lambda: reload_tls(tls, settings)))
        except (SettingError, KeyMaterialError, ServiceError) as error:
            log.error("reload refused", extra={"error": str(error)})
            return
        self._web.signer = signer
        self._web.credentials = dict(settings.api_credentials)
        self._web.allowed_origins = settings.allowed_origins
        self._devices.limits = device_limits(settings)
        if self._web.audio is not None:
            self._web.audio.limits = audio_limits(settings)
            self._web.audio.transcriber.limits = speech_limits(settings)
        if self._devices.audio is not None:
            limits = audio_limits(settings)
            self._devices.audio.idle_timeout_s = limits.idle_timeout_s
            self._devices.audio.utterance_timeout_s = limits.upload_timeout_s
        self.presence.limits = slot_limits(settings)
        set_level(settings.log_level)
        self.settings = settings
        log.info("reloaded", extra={"applied": ",".join(applied) or "nothing new", "needs_restart": ",".join(ignored)})

    async def drain_and_stop(self) -> None:
        """Hand the devices over and stop, within ``drain_grace``. Calling it again waits for the same end.

        In this order: ready turns 503 and new connections and audio streams get 503 with Retry-After; after
        ``drain_delay`` the audio streams under way come to their end, and their words back from the broker (in half of
        the time that is left, at most); reading stops, what was read is routed and its offsets are committed; every
        device is sent what is queued for it and closed with 1001; what devices have said is flushed to the broker.
        """
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._drain_and_stop())
        await asyncio.shield(self._stopping)

    async def _drain_and_stop(self) -> None:
        self._deadline = self._clock() + self.settings.drain_grace_s
        self.presence.drain()
        log.info("draining", extra={"connections": len(self.hub), "grace_s": self.settings.drain_grace_s})
        await asyncio.sleep(min(self.settings.drain_delay_s, self.settings.drain_grace_s))
        await self._opened.aclose()
        log.info("stopped", extra={"connections_cut": self._connections_cut})

    async def _close_devices(self) -> None:
        """1001 to every device, after what is queued for it; sockets that are still open at the end are cut."""
        if self._devices is None:
            return
        # The handshakes of this very turn have not registered yet.
        await asyncio.sleep(0)
        for client in self.hub:
            client.end(GOING_AWAY, keep_queued=True)
        self._connections_cut = await self._devices.sockets.cut_late(self._left_s(SHARE_OF_GRACE_FOR_DEVICES))


async def check(settings: Settings) -> None:
    """Read what a gateway with these settings would read at its start, keys and certificates, and open nothing else: no
    port, no broker, no mailbox.

    :raises CocoaError: it would not start
    """
    gateway = Gateway(settings)
    try:
        await gateway.keys.start()
    finally:
        await gateway.keys.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    """As ``asyncio.run``, on an event loop that is made for thousands of devices at once."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main)


def audio_intake(transcriber: Transcriber, settings: Settings) -> AudioIntake:
    """What becomes of binary messages."""
    # It loads the voice activity detector, which a gateway without speech need not have.
    from .speech.segmenter import Segmenter

    limits = audio_limits(settings)
    return AudioIntake(
        transcriber, unsaid(settings.raw_audio), Segmenter, limits.idle_timeout_s, limits.upload_timeout_s
    )


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


def make_signer(settings: Settings, sources: KeySources) -> Signer | None:
    """What the token endpoint signs with; None where it is off, or only public keys are configured."""
    if not settings.api_credentials:
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
    machine, size = this_machine(), worker_bytes(engine_of(url))
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
    if scheme in ("redis", "rediss"):
        from .mailboxes.redis import RedisMailbox

        return RedisMailbox(settings.mailbox, limits)
    return None


def make_presence(settings: Settings, relay: Relay, clock: Callable[[], float]) -> Presence:
    """Presence, not started."""
    # A later process has a greater term, so that no generation is given twice.
    return LocalPresence(slot_limits(settings), relay, clock, LocalStore(term=int(time.time() * 1000)))


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
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # A renegotiation costs the client nothing and us a handshake. OpenSSL 3 refuses it by itself, 1.1.1 does not.
    context.options |= ssl.OP_NO_RENEGOTIATION
    reload_tls(context, settings)
    return context


def reload_tls(context: ssl.SSLContext, settings: Settings) -> None:
    """Read the certificate again; new connections get it. A pair that does not fit changes nothing."""
    if settings.tls_cert is None:
        return
    try:
        # A trial first: a context that has loaded half of a bad pair would fail every handshake. Without a password of
        # ours, OpenSSL would stop and ask the terminal for that of an encrypted key.
        trial = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trial.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (OSError, ssl.SSLError) as error:
        problem = error.strerror or type(error).__name__
        raise ServiceError(f"certificate {settings.tls_cert} and key {settings.tls_key}: {problem}") from error
