"""Every setting of the gateway: its name, type, default and meaning, in one table that is also the frozen value.

The option, the environment variable, the key in a file, the command's help and docs/settings.rst are all made from
:data:`TABLE`; what a row has is in ``rows``, what its type can be in ``types``. An adapter's own settings, and the URL
that chooses it, stand with the adapter.
"""

# ruff: noqa: RUF009
# row() is dataclasses.field() with the table's columns; it makes no default that two objects could share.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal

from msgspec import Meta

from ..adapters import Scheme, bare
from ..brokers.kafka_settings import KAFKA_SECTIONS, KAFKA_URL, KafkaSettings
from ..mailboxes.redis_url import REDIS
from ..mailboxes.sqlite_url import SQLITE
from ..presence.rules import DuplicatePolicy
from ..rules import buffers
from ..rules.addresses import kafka_servers, without_user_info
from ..rules.audio import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, AudioFormat, Encoding
from ..rules.identity import TokenPolicy
from ..rules.origins import Network
from ..speech.engines import SCHEMES as ENGINE_SCHEMES
from ..speech.engines import UNKNOWN_ENGINE
from .domain import (
    YEAR_S,
    AdapterUrl,
    Count,
    Credential,
    Duration,
    FolderPath,
    Host,
    KeySource,
    Line,
    NetworkEntry,
    OptionalFile,
    OriginEntry,
    Rate,
    SecretText,
    Size,
    Timeout,
)
from .rows import Setting, row, rows_of

HttpPublish = Literal["auto", "on", "off"]
LogFormat = Literal["auto", "text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
JwtAlgorithm = Literal["HS256", "HS384", "HS512", "RS256", "ES256", "EdDSA", "Ed25519", "Ed448"]
EMBEDDED_BROKER: Final = "memory://"
MAILBOX_OFF: Final = "none://"
SPEECH_AUTO: Final = "auto"
SPEECH_OFF: Final = "none://"

LISTEN: Final = "Listening"
IDENTITY: Final = "Identity"
ACCESS: Final = "Who may call"
CONNECTIONS: Final = "Connections"
BROKER: Final = "Broker"
SPEECH: Final = "Speech"
LOGGING: Final = "Logging"
DRAIN: Final = "Draining"
SECTIONS: Final = (LISTEN, IDENTITY, ACCESS, CONNECTIONS, BROKER, SPEECH, *KAFKA_SECTIONS, DRAIN, LOGGING)


def _later(url: str) -> str:
    raise ValueError("is not available in this version")


_UNKNOWN_BROKER: Final = "is not a broker of a kind that is known"
BROKERS: Final = AdapterUrl(bare("memory", _UNKNOWN_BROKER), KAFKA_URL, unknown=_UNKNOWN_BROKER)
MAILBOXES: Final = AdapterUrl(
    *(bare(name, f"nothing stands after {name}://") for name in ("none", "memory")),
    SQLITE,
    REDIS,
    unknown="it is not a mailbox",
    colon=":",
)
PRESENCE: Final = AdapterUrl(
    bare("local", "is unknown"),
    Scheme(names=("redis", "rediss"), form="", check=_later),
    unknown="is unknown",
)
ENGINES: Final = AdapterUrl(bare("none", UNKNOWN_ENGINE), *ENGINE_SCHEMES, unknown=UNKNOWN_ENGINE, words=(SPEECH_AUTO,))


@dataclass(frozen=True, repr=False, kw_only=True)
class Settings(KafkaSettings):
    """All settings, typed and frozen. Durations are seconds (``_s``), sizes are bytes.

    Made by :func:`cocoa_tornado.settings.sources.load`, or directly where a program knows what it wants; then
    :func:`cocoa_tornado.settings.checks.check` says whether the values go together. An adapter that has settings of its
    own adds them as another base. (Bases of dataclasses can be combined; those of a ``msgspec.Struct`` cannot.)
    """

    # Listening
    host: Annotated[str, Host] = row(
        LISTEN,
        "127.0.0.1",
        "Address to listen on; ``::`` for all addresses, of IPv4 and IPv6.",
        "``0.0.0.0`` means all addresses of IPv4. With the development key only loopback is served; any other address "
        "needs ``jwt_secret`` or ``jwt_key``.",
    )
    port: Annotated[int, Meta(ge=0, le=65535)] = row(
        LISTEN, 8080, "Port to listen on; 0 picks a free one and prints it."
    )
    tls_cert: OptionalFile = row(
        LISTEN, None, "Certificate chain (PEM) to serve wss:// and https:// with.", "Given together with ``tls_key``."
    )
    tls_key: OptionalFile = row(LISTEN, None, "Private key (PEM) of the certificate.")
    header_timeout_s: Timeout = row(LISTEN, 10.0, "How long a client may take to send a request's headers.")
    body_timeout_s: Timeout = row(LISTEN, 30.0, "How long a client may take to send a request's body.")
    max_pending_connections: Annotated[int, Meta(ge=1, le=10_000_000)] = row(
        LISTEN,
        4096,
        "Connections that are not a device's (yet), above which newcomers wait in the kernel's queue.",
        "A connection counts from when it is accepted until it is a device's or closed. Near the bound, idle and slow "
        "connections give way to newcomers.",
    )
    max_connections_per_address: Annotated[int, Meta(ge=0, le=10_000_000)] = row(
        LISTEN,
        1024,
        "Of ``max_pending_connections``, those of one address once three quarters are taken; 0 for no limit.",
        "Devices that are connected don't count. An IPv6 client counts for its network (/64). There is no limit for "
        "``trusted_proxies`` and this machine itself.",
    )
    trusted_proxies: tuple[Annotated[Network, NetworkEntry], ...] = row(
        LISTEN,
        (),
        "A proxy whose X-Forwarded-For and X-Forwarded-Proto are believed.",
        "An IP address or a network. From any other peer the headers are ignored.",
    )

    # Identity
    jwt_secret: SecretText = row(
        IDENTITY,
        "",
        "Secret that device tokens are signed with (HS256); better in the environment.",
        "32 bytes or more. With neither this nor ``jwt_key``, a development key is used, which is made on first use, "
        "kept in ``data_dir``, and accepted on loopback only.",
        reloadable=True,
    )
    jwt_previous_secrets: tuple[SecretText, ...] = row(
        IDENTITY, (), "Secret that still verifies tokens but signs none (for a change of secrets).", reloadable=True
    )
    jwt_key: tuple[Annotated[str, KeySource], ...] = row(
        IDENTITY,
        (),
        "PEM or JWKS file, or URL of a JWKS, whose keys verify tokens.",
        "A reload reads the files again, whether their names have changed or not.",
        reloadable=True,
    )
    jwt_signing_key: OptionalFile = row(
        IDENTITY,
        None,
        "Private key (PEM) that the token endpoint signs with, in place of jwt_secret.",
        "Its public half must stand in ``jwt_key``, or the gateway would refuse the tokens it signs.",
        reloadable=True,
    )
    jwt_algorithms: tuple[JwtAlgorithm, ...] = row(
        IDENTITY,
        ("HS256", "RS256", "ES256", "EdDSA"),
        "Algorithm that a token may be signed with.",
        "Each goes with its own kind of key only: HS with ``jwt_secret``, RS256 with RSA, ES256 with P-256, Ed25519 "
        "and Ed448 with their curves. EdDSA is the older name of both, and a token may use either.",
    )
    jwt_issuer: Line = row(
        IDENTITY, "cocoa-fruit-agentic", "Issuer (iss) that a token must name, if it names one; empty: any."
    )
    jwt_subject: Line = row(
        IDENTITY, "audio-streaming", "Subject (sub) that a token must name, if it names one; empty: any."
    )
    jwt_audience: Line = row(
        IDENTITY,
        "",
        "Audience (aud) that a token must name.",
        "Where it is empty, a token that names an audience is refused, as RFC 7519 asks.",
    )
    jwt_leeway_s: Annotated[float, Meta(ge=0, le=3600), Duration] = row(
        IDENTITY, 10.0, "How far the clocks of issuer and gateway may differ."
    )
    jwt_lifetime_s: Annotated[float, Meta(ge=1, le=YEAR_S), Duration] = row(
        IDENTITY, 86400.0, "Life of a token that the token endpoint makes."
    )
    jwt_max_lifetime_s: Annotated[float, Meta(ge=0, le=36525 * 86400), Duration] = row(
        IDENTITY,
        0.0,
        "Longest lifetime of a token that is accepted; 0: any.",
        "From ``iat`` to ``exp``, or from now where a token has no ``iat``. Off by default, because some fleets have "
        "tokens of many years; where yours has none, a limit bounds what a leaked token is good for. Not shorter than "
        "``jwt_lifetime``.",
    )
    jwks_refresh_s: Annotated[float, Meta(ge=1, le=YEAR_S), Duration] = row(
        IDENTITY,
        300.0,
        "How often a JWKS is fetched anew.",
        "An unknown key id fetches it sooner. If it cannot be fetched, the last good keys stay.",
    )
    data_dir: Annotated[Path | None, FolderPath] = row(
        IDENTITY,
        None,
        "Folder for what the gateway keeps: the development key.",
        "Empty: the user's data directory, such as ``~/.local/share/cocoa-tornado``.",
    )

    # Who may call
    api_credentials: tuple[Annotated[tuple[str, str], Credential], ...] = row(
        ACCESS,
        (),
        "X-API-Key and X-API-Secret that the token endpoint takes, as key:secret.",
        "With none, the token endpoint answers 404.",
        reloadable=True,
    )
    allowed_origins: tuple[Annotated[str, OriginEntry], ...] = row(
        ACCESS,
        (),
        "Web page that may open a WebSocket, besides the server's own, and read answers; * is any.",
        "A full origin (``https://app.example``), all below a domain (``https://*.example``), or a host name whatever "
        "its scheme and port. Clients that send no Origin, or one of another scheme than http and https, need no "
        "entry; firmware that sends a web page's, perhaps with a path, needs it whole. Pages of these origins, and of "
        "no other, may also read the answers of ``/ws``, the token endpoint, audio and transcriptions (CORS).",
        reloadable=True,
    )
    http_publish: HttpPublish = row(
        ACCESS,
        "auto",
        "Devices may post records for themselves over HTTP; auto: with memory:// only.",
        "``POST /api/v1/transcriptions``, with which ``cocoa probe-device`` tries a delivery without the broker.",
    )

    # Connections
    connections_per_device: Annotated[int, Meta(ge=1, le=1000)] = row(
        CONNECTIONS, 1, "Connections that a device may hold at a time.", reloadable=True
    )
    max_connections: Annotated[int, Meta(ge=0, le=10_000_000)] = row(
        CONNECTIONS, 0, "Connections in all, above which 503 is answered; 0: no limit of its own.", reloadable=True
    )
    duplicate_policy: DuplicatePolicy = row(
        CONNECTIONS,
        "challenge",
        "What a connection too many does: challenge pings the old one first, reject is 409.",
        "An old connection that does not answer the ping in time is closed (4409) and the new one admitted, so that a "
        "dead network does not lock a device out.",
    )
    duplicate_challenge_s: Annotated[float, Meta(ge=0.01, le=60), Duration] = row(
        CONNECTIONS, 2.0, "How long a challenged connection has to answer."
    )
    retry_after_s: Annotated[float, Meta(ge=0, le=86400), Duration] = row(
        CONNECTIONS, 5.0, "Retry-After of a 409 or 503, in whole seconds, rounded up."
    )
    ping_interval_s: Timeout = row(CONNECTIONS, 30.0, "How often the server pings a connection.")
    ping_timeout_s: Timeout = row(
        CONNECTIONS,
        30.0,
        "How long it waits for the pong before it closes the connection.",
        "Not longer than ``ping_interval``.",
    )
    write_wait_s: Timeout = row(CONNECTIONS, 10.0, "How long a socket may take no byte before it is closed.")
    max_message_bytes: Annotated[int, Meta(ge=1, le=2**31), Size] = row(
        CONNECTIONS,
        512 * 1024,
        "Largest message from a device; a larger one closes the connection (1009).",
        reloadable=True,
    )
    outbox_max_messages: Count = row(
        CONNECTIONS, 256, "Messages that may wait for a slow device before it is closed (1013).", reloadable=True
    )
    outbox_max_bytes: Annotated[int, Meta(ge=1024, le=2**31), Size] = row(
        CONNECTIONS, 1024 * 1024, "Bytes that may wait for a slow device, likewise.", reloadable=True
    )
    inbound_rate: Rate = row(
        CONNECTIONS, 100.0, "Messages a second that a device may send in the long run; 0: no limit.", reloadable=True
    )
    inbound_burst: Count = row(CONNECTIONS, 200, "Messages that it may send at once after a rest.", reloadable=True)

    # Broker
    broker: Annotated[str, BROKERS] = row(
        BROKER,
        "memory://",
        "Where records come from and go to.",
        "``memory://`` lives in this process and is for trying out. ``kafka://`` takes several servers with commas "
        "between; the port is 9092 if it is left out, and an IPv6 address stands in brackets.",
    )
    mailbox: Annotated[str, MAILBOXES] = row(
        BROKER,
        "none://",
        "Where messages for offline devices are kept; none://: they are not.",
        "With one, each message is stored before it is sent, bears a cursor, and is kept until its device has it. "
        "``memory://`` is lost with the gateway. ``sqlite:///relative/path`` or ``sqlite:////absolute/path`` is one "
        "file for one gateway. ``redis://host:port/db`` needs the extra ``redis``, and may stand on another machine.",
    )
    mailbox_ttl_s: Annotated[float, Meta(ge=1, le=366 * 86400), Duration] = row(
        BROKER, 86_400.0, "How long a message is kept for its device."
    )
    mailbox_max_messages: Count = row(
        BROKER, 1_000, "Messages kept for one device; beyond it the oldest are dropped, and the device told how many."
    )
    mailbox_max_bytes: Annotated[int, Meta(ge=1024, le=2**31), Size] = row(
        BROKER, 4 * 1024 * 1024, "Bytes of messages kept for one device, likewise."
    )
    presence: Annotated[str, PRESENCE] = row(
        BROKER, "local://", "Who knows which server holds a device; only local:// in this version."
    )
    high_water: Annotated[int, Meta(ge=2, le=10_000_000)] = row(
        BROKER, 10_000, "Records in flight between broker and devices, above which reading pauses."
    )
    low_water: Annotated[int, Meta(ge=1, le=10_000_000)] = row(
        BROKER, 2_000, "Records in flight, below which it goes on.", "Smaller than ``high_water``."
    )
    buffer_bytes: Annotated[int, Meta(ge=buffers.MIN_BYTES, le=2**31), Size] = row(
        BROKER,
        buffers.DEFAULT_BYTES,
        "Memory for messages on their way, in all; each part that holds some has a fixed share.",
        "A part that has used up its share makes those wait that it takes from. docs/operations.rst lists the parts "
        "and their shares.",
    )
    publish_queue_records: Annotated[int, Meta(ge=1, le=10_000_000)] = row(
        BROKER, 10_000, "Records that may wait to be published; above it, devices are read more slowly."
    )
    publish_queue_bytes: Annotated[int, Meta(ge=0, le=2**31), Size] = row(
        BROKER,
        0,
        "Bytes that may wait to be published, likewise; 0: an eighth of ``buffer_bytes``.",
        "Not smaller than ``max_message_bytes``.",
    )

    # Speech
    speech: Annotated[str, ENGINES] = row(
        SPEECH,
        SPEECH_AUTO,
        "What turns speech into text; auto: pocketsphinx:// where it is installed, else none://.",
        "``none://`` turns it off. ``pocketsphinx://`` comes with a model (English); "
        "``pocketsphinx:///folder?dict=FILE`` is another. ``whisper://`` is followed by the name of a model, such as "
        "``base``, or its folder. ``google://`` is Google Cloud Speech, with the ordinary credentials of Google's "
        "libraries. Each needs an extra of the package: ``speech``, ``whisper``, ``google``.",
    )
    speech_workers: Annotated[int, Meta(ge=0, le=1024)] = row(
        SPEECH,
        0,
        "Processes that recognise speech, one stream at a time each; 0: as many as the machine can serve.",
        "In a container, as many as its limits allow: one less than there are processors (cores by affinity, or the "
        "CPU quota of the control group, rounded), no more than the memory holds beside the gateway, and at least one. "
        "Each holds the engine's model in memory.",
    )
    speech_queue: Annotated[int, Meta(ge=0, le=100_000)] = row(
        SPEECH, 16, "Streams that may wait for a worker; one more is refused with 429."
    )
    speech_language: Annotated[
        str,
        Meta(
            pattern=r"\A([A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*)?\Z",
            description="a language tag such as en or en-US, or nothing",
        ),
    ] = row(
        SPEECH,
        "",
        "Language that is spoken; empty: what the engine takes by itself.",
        "Whisper then guesses it for each utterance, pocketsphinx has that of its model, Google takes en-US.",
    )
    speech_stall_s: Annotated[float, Meta(ge=0.1, le=3600), Duration] = row(
        SPEECH, 30.0, "A worker that makes no progress for so long is replaced; its stream has failed (502)."
    )
    audio_encoding: Encoding = row(
        SPEECH,
        "s16le",
        "Raw samples that a device sends without saying more; l16 judges the byte order by the samples.",
        "Over the WebSocket, and in a POST whose Content-Type does not say it.",
    )
    audio_rate: Annotated[int, Meta(ge=MIN_RATE_HZ, le=MAX_RATE_HZ)] = row(
        SPEECH, 16_000, "Their sample rate, in hertz."
    )
    audio_channels: Annotated[int, Meta(ge=1, le=MAX_CHANNELS)] = row(SPEECH, 1, "Their channels, interleaved.")
    audio_max_bytes: Annotated[int, Meta(ge=1024, le=2**31), Size] = row(
        SPEECH, 10 * 1024 * 1024, "Largest body of an audio upload; a larger one is refused with 413.", reloadable=True
    )
    audio_max_duration_s: Annotated[float, Meta(ge=0.1, le=3600), Duration] = row(
        SPEECH,
        60.0,
        "Longest audio of one stream; more is refused with 413.",
        "Over the WebSocket the words so far are published, and another utterance begins.",
        reloadable=True,
    )
    audio_idle_timeout_s: Annotated[float, Meta(ge=0.05, le=3600), Duration] = row(
        SPEECH,
        30.0,
        "An upload from which no byte comes for so long ends with 408.",
        "It ends so too when it takes longer than twice ``audio_max_duration`` and this together, not counting the "
        "time in which the gateway itself holds the device back.",
        reloadable=True,
    )
    audio_streams_per_device: Annotated[int, Meta(ge=1, le=1000)] = row(
        SPEECH, 1, "Audio streams that a device may have at a time; 429 above.", reloadable=True
    )
    audio_streams: Annotated[int, Meta(ge=0, le=1_000_000)] = row(
        SPEECH,
        0,
        "Audio streams in all, above which 429 is answered; 0: as many as workers and queue take.",
        reloadable=True,
    )

    # Draining
    drain_grace_s: Annotated[float, Meta(ge=0, le=3600), Duration] = row(
        DRAIN,
        25.0,
        "Time in all to hand devices over and stop after SIGTERM.",
        "Keep it below the time after which the supervisor kills the process: systemd's ``TimeoutStopSec``, "
        "Kubernetes' ``terminationGracePeriodSeconds``.",
    )
    drain_delay_s: Annotated[float, Meta(ge=0, le=3600), Duration] = row(
        DRAIN,
        0.0,
        "Time from ready=503 to the first closed connection.",
        "Time for a load balancer to notice; part of ``drain_grace``.",
    )

    # Logging
    log_format: LogFormat = row(
        LOGGING, "text", "Form of the log on standard error; auto: text on a terminal, else json."
    )
    log_level: LogLevel = row(LOGGING, "info", "Least level that is logged.", reloadable=True)
    access_log: bool = row(LOGGING, True, "One line for each HTTP request; never holds a token.")

    def __repr__(self) -> str:
        """What differs from the defaults; secrets hidden."""
        shown = (_shown(setting, getattr(self, setting.attribute)) for setting in non_defaults(self))
        return f"Settings({', '.join(shown)})"

    @property
    def uses_development_key(self) -> bool:
        """True if neither a secret nor a key is configured."""
        return not self.jwt_secret and not self.jwt_key

    @property
    def has_embedded_broker(self) -> bool:
        """Whether records live in this process."""
        return self.broker == EMBEDDED_BROKER

    @property
    def broker_servers(self) -> tuple[str, ...]:
        """``host:port`` of each Kafka server; empty with another broker."""
        return kafka_servers(self.broker) if self.broker.lower().startswith("kafka://") else ()

    @property
    def buffers(self) -> dict[str, int]:
        """The bytes that each part may hold: its share of ``buffer_bytes``, unless it has a setting of its own."""
        shares = buffers.split(self.buffer_bytes, embedded=self.has_embedded_broker)
        return shares if self.has_embedded_broker else shares | {"publish": 2 * self.publish_bytes}

    @property
    def publish_bytes(self) -> int:
        """Bytes that may wait to be published before devices are read more slowly; twice as many are the most."""
        return self.publish_queue_bytes or buffers.split(self.buffer_bytes, embedded=False)["publish"] // 2

    @property
    def token_policy(self) -> TokenPolicy:
        """What a token must say to be taken, and how long one that is made here lives."""
        return TokenPolicy(
            issuer=self.jwt_issuer,
            subject=self.jwt_subject,
            audience=self.jwt_audience,
            leeway_s=self.jwt_leeway_s,
            lifetime_s=self.jwt_lifetime_s,
            max_lifetime_s=self.jwt_max_lifetime_s,
        )

    @property
    def raw_audio(self) -> AudioFormat:
        """What a device's samples are where nothing says more."""
        return AudioFormat("raw", self.audio_encoding, self.audio_rate, self.audio_channels)

    @property
    def publishes_over_http(self) -> bool:
        """Whether ``POST /api/v1/transcriptions`` is there."""
        return self.http_publish == "on" or (self.http_publish == "auto" and self.has_embedded_broker)


TABLE: Final[Mapping[str, Setting]] = MappingProxyType(
    {setting.key: setting for setting in rows_of(Settings, SECTIONS)}
)
"""Every setting by its key, section by section."""


def non_defaults(settings: Settings) -> tuple[Setting, ...]:
    """The rows whose values in ``settings`` are not the defaults."""
    return tuple(row for row in TABLE.values() if getattr(settings, row.attribute) != row.default)


def _shown(setting: Setting, value: object) -> str:
    text = "***" if setting.secret else without_user_info(setting.kind.show(value))
    return f"{setting.attribute}={text!r}"
