"""Every setting of the gateway, with name, type, default and description: the fields of one frozen dataclass.

Options, environment variables, keys in files, the command's help and docs/settings.rst all derive from :data:`TABLE`.
``rows`` defines a row, and ``types`` the types of values. An adapter's own settings, and the scheme of its URL, are
defined beside the adapter.
"""

# ruff: noqa: RUF009
# row() is dataclasses.field() with the table's columns; all defaults are immutable.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal

from msgspec import Meta

from ..adapters import bare
from ..brokers.kafka_settings import KAFKA_SECTIONS, KAFKA_URL, KafkaSettings
from ..mailboxes.sqlite_url import SQLITE
from ..presence.grants import ConnectionDelivery, DuplicatePolicy
from ..presence.redis_settings import PRESENCE_REDIS, SERVERS, PresenceSettings
from ..redis_store.redis_url import redis_scheme
from ..rules import buffers
from ..rules.addresses import is_loopback, kafka_servers, without_user_info
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
    HostEntry,
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
from .types import OptionalWhole

HttpPublish = Literal["auto", "on", "off"]
OnOff = Literal["on", "off"]
LogFormat = Literal["auto", "text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
JwtAlgorithm = Literal["HS256", "HS384", "HS512", "RS256", "ES256", "EdDSA", "Ed25519", "Ed448"]
EMBEDDED_BROKER: Final = "memory://"
MAILBOX_OFF: Final = "none://"
SPEECH_AUTO: Final = "auto"
SPEECH_OFF: Final = "none://"

LISTEN: Final = "Listening"
IDENTITY: Final = "Identity"
ACCESS: Final = "Access"
ADMIN: Final = "Admin API"
CONNECTIONS: Final = "Connections"
BROKER: Final = "Broker"
SPEECH: Final = "Speech"
LOGGING: Final = "Logging"
DRAIN: Final = "Draining"
SECTIONS: Final = (
    LISTEN,
    IDENTITY,
    ACCESS,
    ADMIN,
    CONNECTIONS,
    BROKER,
    SERVERS,
    SPEECH,
    *KAFKA_SECTIONS,
    DRAIN,
    LOGGING,
)


_UNKNOWN_BROKER: Final = "is not a supported broker"
BROKERS: Final = AdapterUrl(bare("memory", _UNKNOWN_BROKER), KAFKA_URL, unknown=_UNKNOWN_BROKER)
MAILBOXES: Final = AdapterUrl(
    *(bare(name, f"nothing may follow {name}://") for name in ("none", "memory")),
    SQLITE,
    redis_scheme(instead="sqlite:///path"),
    unknown="it is not a supported mailbox",
    colon=":",
)
PRESENCE: Final = AdapterUrl(
    bare("local", "is unknown"),
    PRESENCE_REDIS,
    unknown="is unknown",
)
ENGINES: Final = AdapterUrl(bare("none", UNKNOWN_ENGINE), *ENGINE_SCHEMES, unknown=UNKNOWN_ENGINE, words=(SPEECH_AUTO,))


@dataclass(frozen=True, repr=False, kw_only=True)
class Settings(KafkaSettings, PresenceSettings):
    """All settings, typed and frozen. Durations are in seconds (``_s``), sizes in bytes.

    :func:`cocoa_tornado.settings.sources.load` creates it. Code may also create it directly, and should then call
    :func:`cocoa_tornado.settings.checks.check`. An adapter adds its own settings as a base class. (A dataclass, because
    a ``msgspec.Struct`` cannot combine several bases.)
    """

    # Listening
    host: Annotated[str, Host] = row(
        LISTEN,
        "127.0.0.1",
        "Address to listen on; ``::`` for all addresses, IPv4 and IPv6.",
        "``0.0.0.0`` means all IPv4 addresses. The development key works on loopback addresses only; any other address "
        "needs ``jwt_secret`` or ``jwt_key``.",
    )
    port: Annotated[int, Meta(ge=0, le=65535)] = row(
        LISTEN, 8080, "Port to listen on; 0 picks a free port and prints it."
    )
    workers: Annotated[int, Meta(ge=1, le=256)] = row(
        LISTEN,
        1,
        "Processes that share the port, each with a part of the devices.",
        "More than one need a Kafka ``broker`` and a Redis ``presence``. Each is a server of its own, named "
        "``<server name>/<number>``; limits and ``buffer_bytes`` apply to each, and ``speech_workers`` = 0 shares the "
        "machine between them. A parent, which serves no device, restarts those that end or hang.",
    )
    tls_cert: OptionalFile = row(
        LISTEN, None, "Certificate chain (PEM) for wss:// and https://.", "Requires ``tls_key``."
    )
    tls_key: OptionalFile = row(LISTEN, None, "Private key (PEM) of the certificate.")
    header_timeout_s: Timeout = row(LISTEN, 10.0, "Time limit for receiving a request's headers.")
    body_timeout_s: Timeout = row(LISTEN, 30.0, "Time limit for receiving a request's body.")
    max_pending_connections: Annotated[int, Meta(ge=1, le=10_000_000)] = row(
        LISTEN,
        4096,
        "Limit of open connections that are not (yet) a device's; more wait in the kernel's queue.",
        "A connection counts from its acceptance until it becomes a device's or closes. Near the limit, the gateway "
        "closes idle and slow connections to accept new ones.",
    )
    max_connections_per_address: Annotated[int, Meta(ge=0, le=10_000_000)] = row(
        LISTEN,
        1024,
        "Limit per address while three quarters of ``max_pending_connections`` are in use; 0: none.",
        "Connected devices don't count. All addresses of an IPv6 /64 network count as one. ``trusted_proxies`` and "
        "this machine itself have no limit.",
    )
    trusted_proxies: tuple[Annotated[Network, NetworkEntry], ...] = row(
        LISTEN,
        (),
        "Proxy whose X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host headers are trusted.",
        "An IP address or a network. The headers of all other clients are ignored.",
    )

    # Identity
    jwt_secret: SecretText = row(
        IDENTITY,
        "",
        "Secret for signing device tokens (HS256); better set in the environment.",
        "32 bytes or more. Without this and ``jwt_key``, the gateway uses a development key, which it creates on first "
        "use in ``data_dir``, and which works on loopback addresses only.",
        reloadable=True,
    )
    jwt_previous_secrets: tuple[SecretText, ...] = row(
        IDENTITY, (), "Secret that verifies tokens but signs none, for rotation.", reloadable=True
    )
    jwt_key: tuple[Annotated[str, KeySource], ...] = row(
        IDENTITY,
        (),
        "PEM or JWKS file, or URL of a JWKS, with keys that verify tokens.",
        "A reload reads the files again, even if the setting is unchanged.",
        reloadable=True,
    )
    jwt_signing_key: OptionalFile = row(
        IDENTITY,
        None,
        "Private key (PEM) with which the token endpoint signs, instead of jwt_secret.",
        "``jwt_key`` must include its public key, or the gateway would reject the tokens it signs.",
        reloadable=True,
    )
    jwt_algorithms: tuple[JwtAlgorithm, ...] = row(
        IDENTITY,
        ("HS256", "RS256", "ES256", "EdDSA"),
        "Accepted signature algorithm of tokens.",
        "Each requires its type of key: HS256, HS384 and HS512 ``jwt_secret``, RS256 an RSA key, ES256 a P-256 key, "
        "Ed25519 and Ed448 a key on that curve. EdDSA is the older name for both curves; tokens may use either name.",
    )
    jwt_issuer: Line = row(
        IDENTITY, "cocoa-fruit-agentic", "Required issuer (iss) of tokens that have one; empty: any."
    )
    jwt_subject: Line = row(IDENTITY, "audio-streaming", "Required subject (sub) of tokens that have one; empty: any.")
    jwt_audience: Line = row(
        IDENTITY,
        "",
        "Required audience (aud) of tokens.",
        "If it is empty, tokens with an audience are rejected, as RFC 7519 requires.",
    )
    jwt_leeway_s: Annotated[float, Meta(ge=0, le=3600), Duration] = row(
        IDENTITY, 10.0, "Allowed difference between the clocks of issuer and gateway."
    )
    jwt_lifetime_s: Annotated[float, Meta(ge=1, le=YEAR_S), Duration] = row(
        IDENTITY, 86400.0, "Lifetime of tokens from the token endpoint."
    )
    jwt_max_lifetime_s: Annotated[float, Meta(ge=0, le=36525 * 86400), Duration] = row(
        IDENTITY,
        0.0,
        "Longest accepted lifetime of a token; 0: any.",
        "Measured from ``iat`` to ``exp``, or from now if a token has no ``iat``. Off by default, because some fleets "
        "use tokens that live for years; in other fleets, a limit reduces the risk of a leaked token. Not shorter than "
        "``jwt_lifetime``.",
    )
    jwks_refresh_s: Annotated[float, Meta(ge=1, le=YEAR_S), Duration] = row(
        IDENTITY,
        300.0,
        "Interval between fetches of a JWKS.",
        "An unknown key id causes an earlier fetch. While fetches fail, the last valid keys stay in use.",
    )
    data_dir: Annotated[Path | None, FolderPath] = row(
        IDENTITY,
        None,
        "Folder for the gateway's own data: the development key, and blocked devices.",
        "Empty: the user's data directory, such as ``~/.local/share/cocoa-tornado``.",
    )

    # Access
    api_credentials: tuple[Annotated[tuple[str, str], Credential], ...] = row(
        ACCESS,
        (),
        "X-API-Key and X-API-Secret for the token endpoint, as key:secret.",
        "Without any, the token endpoint answers 404.",
        reloadable=True,
    )
    allowed_origins: tuple[Annotated[str, OriginEntry], ...] = row(
        ACCESS,
        (),
        "Origin of web pages that may connect and read responses, besides the server's own; * for any.",
        "A full origin (``https://app.example``), all subdomains (``https://*.example``), or a host name, for any "
        "scheme and port. Clients without an Origin header, or with an Origin of another scheme than http and https, "
        "need no entry. Firmware that sends the Origin of a web page, perhaps with a path, needs an entry with the "
        "same text. Only pages of these origins may read responses of ``/ws``, the token endpoint, audio and "
        "transcriptions (CORS).",
        reloadable=True,
    )
    allowed_hosts: tuple[Annotated[str, HostEntry], ...] = row(
        ACCESS,
        (),
        "Host name by which pages, monitoring and operators may reach the gateway; * for any.",
        "A name, or all names below one (``*.example.com``), without a port. IP addresses, ``localhost`` and the names "
        "in ``host`` and ``admin_host`` are always allowed. If the setting is empty, every name is allowed, or with "
        "the development key no other. A request by another name is answered 421, because it may come from a web page "
        "whose own name was made to lead here (DNS rebinding). The paths of devices and backends need no entry: "
        "``/ws``, the token endpoint, audio and transcriptions.",
        reloadable=True,
    )
    http_publish: HttpPublish = row(
        ACCESS,
        "auto",
        "Whether devices may publish records for themselves over HTTP; auto: with memory:// only.",
        "``cocoa probe-device`` uses ``POST /api/v1/transcriptions`` to test delivery without access to the broker.",
    )

    # Admin API
    admin_jwt_secret: SecretText = row(
        ADMIN,
        "",
        "Secret of admin tokens (HS256); better set in the environment.",
        "Enables the admin API. 32 bytes or more, and not a secret of device tokens. Without this and "
        "``admin_jwt_key``, the admin API is disabled (404), except with the development key, which then signs admin "
        "tokens too.",
        reloadable=True,
    )
    admin_jwt_key: tuple[Annotated[str, KeySource], ...] = row(
        ADMIN,
        (),
        "PEM or JWKS file, or URL of a JWKS, with keys that verify admin tokens.",
        "Enables the admin API. It may have the same keys as ``jwt_key``: the audience ``cocoa-admin`` tells admin "
        "tokens from those of devices. A reload reads the files again, even if the setting is unchanged.",
        reloadable=True,
    )
    admin_host: Annotated[str, Host] = row(
        ADMIN, "127.0.0.1", "Address of the admin API's own listener, if ``admin_port`` is set."
    )
    admin_port: Annotated[int | None, Meta(ge=0, le=65535), OptionalWhole] = row(
        ADMIN,
        None,
        "Port of the admin API's own listener; empty: it is on ``port``.",
        "With it, ``/`` and ``/api/v1/admin/`` are on this port only. 0 picks a free port, which the log names.",
    )
    console: OnOff = row(
        ADMIN,
        "on",
        "Whether ``GET /`` serves the web console where the admin API is enabled.",
        "Every piece of data that it shows comes from the admin API, with the operator's token.",
    )

    # Connections
    connections_per_device: Annotated[int, Meta(ge=1, le=1000)] = row(
        CONNECTIONS, 1, "Connections per device.", reloadable=True
    )
    connection_delivery: ConnectionDelivery = row(
        CONNECTIONS,
        "all",
        "Which of a device's connections get its messages, if it may hold several: all, or one at a time.",
        "With ``one``, the others stand by. If the active connection ends, misses a pong, or has a queue of more than "
        "half its limit, the healthiest one takes over the messages that were not written yet.",
    )
    max_connections: Annotated[int, Meta(ge=0, le=10_000_000)] = row(
        CONNECTIONS, 0, "Limit of all device connections, above which new ones get a 503; 0: none.", reloadable=True
    )
    duplicate_policy: DuplicatePolicy = row(
        CONNECTIONS,
        "challenge",
        "Handling of a connection over the limit: challenge pings the old one first, reject answers 409.",
        "If the old connection does not answer the ping in time, it is closed (4409) and the new one admitted, so that "
        "a dead connection does not lock a device out.",
    )
    duplicate_challenge_s: Annotated[float, Meta(ge=0.01, le=60), Duration] = row(
        CONNECTIONS, 2.0, "Time limit for the answer of a challenged connection."
    )
    retry_after_s: Annotated[float, Meta(ge=0, le=86400), Duration] = row(
        CONNECTIONS, 5.0, "Retry-After of a 409 or 503, rounded up to whole seconds."
    )
    ping_interval_s: Timeout = row(CONNECTIONS, 30.0, "Interval between the server's pings of a connection.")
    ping_timeout_s: Timeout = row(
        CONNECTIONS,
        30.0,
        "Time limit for the pong before the server closes the connection.",
        "Not longer than ``ping_interval``.",
    )
    write_wait_s: Timeout = row(CONNECTIONS, 10.0, "Time after which a socket that accepts no byte is closed.")
    max_message_bytes: Annotated[int, Meta(ge=1, le=2**31), Size] = row(
        CONNECTIONS,
        512 * 1024,
        "Largest message from a device; a larger one closes the connection (1009).",
        reloadable=True,
    )
    outbox_max_messages: Count = row(
        CONNECTIONS,
        256,
        "Messages that may wait for a slow device; one more closes it (1013), or waits in the mailbox.",
        reloadable=True,
    )
    outbox_max_bytes: Annotated[int, Meta(ge=1024, le=2**31), Size] = row(
        CONNECTIONS, 1024 * 1024, "Bytes that may wait for a slow device before it is closed (1013).", reloadable=True
    )
    inbound_rate: Rate = row(
        CONNECTIONS, 100.0, "Messages per second that a device may send on average; 0: no limit.", reloadable=True
    )
    inbound_burst: Count = row(CONNECTIONS, 200, "Messages that a device may send in one burst.", reloadable=True)

    # Broker
    broker: Annotated[str, BROKERS] = row(
        BROKER,
        "memory://",
        "Broker of the records.",
        "``memory://`` is part of this process, for development. ``kafka://`` accepts several servers, separated by "
        "commas; the default port is 9092, and IPv6 addresses are written in brackets.",
    )
    mailbox: Annotated[str, MAILBOXES] = row(
        BROKER,
        "none://",
        "Storage of messages for offline devices; none:// drops them.",
        "With a mailbox, each message is stored before it is sent, has a cursor, and is kept until its device has it. "
        "``memory://`` loses its messages when the gateway stops. ``sqlite:///relative/path`` or "
        "``sqlite:////absolute/path`` is a file for one gateway. ``redis://host:port/db``, or ``rediss://`` over TLS, "
        "needs the extra ``redis``. ``redis+sentinel://[user:password@]host:26379[,host:26379...]/<master>/<db>`` "
        "follows the master that Redis Sentinel names; user and password are those of the Redis servers, and of "
        "Sentinels that require one.",
    )
    mailbox_ttl_s: Annotated[float, Meta(ge=1, le=366 * 86400), Duration] = row(
        BROKER, 86_400.0, "Time for which a message is kept for its device."
    )
    mailbox_max_messages: Count = row(
        BROKER, 1_000, "Messages kept per device. Beyond it the oldest are dropped, and the device learns how many."
    )
    mailbox_max_bytes: Annotated[int, Meta(ge=1024, le=2**31), Size] = row(
        BROKER, 4 * 1024 * 1024, "Bytes of messages kept per device. Beyond it the oldest are dropped."
    )
    member_ttl_s: Annotated[float, Meta(ge=1, le=366 * 86400), Duration] = row(
        BROKER,
        30 * 86_400.0,
        "Time for which a mailbox knows an offline device as a member of its groups.",
        "Counted from the device's last connection; messages do not prolong it. After that, messages for its user, its "
        "groups or everyone are not stored for it any more. A device that stays connected is refreshed with its pings, "
        "so a value under twice ``ping_interval`` may forget it as well.",
    )
    presence: Annotated[str, PRESENCE] = row(
        BROKER,
        "local://",
        "Registry of the servers that hold devices; local:// for one server.",
        "Several servers name the same ``redis://host:port/db``, which needs the extra ``redis``; or ``rediss://`` "
        "over TLS, or ``redis+sentinel://`` as for ``mailbox``. They need ``kafka://`` and share its consumer group. A "
        "Redis ``mailbox`` is in the same database.",
    )
    high_water: Annotated[int, Meta(ge=2, le=10_000_000)] = row(
        BROKER, 10_000, "Records in flight between broker and devices at which reading pauses."
    )
    low_water: Annotated[int, Meta(ge=1, le=10_000_000)] = row(
        BROKER, 2_000, "Records in flight at which reading resumes.", "Smaller than ``high_water``."
    )
    buffer_bytes: Annotated[int, Meta(ge=buffers.MIN_BYTES, le=2**31), Size] = row(
        BROKER,
        buffers.DEFAULT_BYTES,
        "Total memory for messages in flight, of which each part has a fixed share.",
        "A part that has used up its share applies backpressure to its sources. docs/operations.rst lists the parts "
        "and their shares.",
    )
    trace_bytes: Annotated[int, Meta(ge=0, le=2**31), Size] = row(
        BROKER,
        64 * 1024 * 1024,
        "Approximate memory for traces of the last messages; 0: none are remembered.",
        "The admin API shows them. If it is disabled at the start, none are remembered.",
    )
    canary_interval_s: Annotated[float, Meta(ge=0, le=3600), Duration] = row(
        BROKER,
        0.0,
        "Interval between messages to this server's two canaries, through the broker; 0: there are none.",
        "The canaries are built-in devices, which monitor that messages arrive, and only at the right device. The "
        "metrics ``cocoa_canary_lost_total`` and ``cocoa_canary_leaked_total``, and the part ``canary`` of "
        "``/api/v1/ready``, show it. With Kafka, the gateway must be allowed to write to the results topic "
        "(docs/operations.rst).",
    )
    publish_queue_records: Annotated[int, Meta(ge=1, le=10_000_000)] = row(
        BROKER, 10_000, "Records that may wait to be published before devices are read more slowly."
    )
    publish_queue_bytes: Annotated[int, Meta(ge=0, le=2**31), Size] = row(
        BROKER,
        0,
        "Bytes that may wait to be published before devices are read more slowly.",
        "0: an eighth of ``buffer_bytes``. Not smaller than ``max_message_bytes``.",
    )

    # Speech
    speech: Annotated[str, ENGINES] = row(
        SPEECH,
        SPEECH_AUTO,
        "Speech recognition engine; auto: pocketsphinx:// if it is installed, else none://.",
        "``none://`` turns speech off. ``pocketsphinx://`` has an English model; ``pocketsphinx:///folder?dict=FILE`` "
        "uses another. ``whisper://`` is followed by the name of a model, such as ``base``, or by its folder. "
        "``google://`` is Google Cloud Speech, with the default credentials of Google's libraries. Each engine needs "
        "an extra of the package: ``speech``, ``whisper``, ``google``.",
    )
    speech_workers: Annotated[int, Meta(ge=0, le=1024)] = row(
        SPEECH,
        0,
        "Speech recognition processes, each with one stream at a time; 0 chooses by CPU and memory.",
        "The choice is one less than the number of processors (CPU affinity, or the rounded CPU quota of the control "
        "group), limited by the memory left beside the gateway (in a container, by its limit), and at least one. Each "
        "process has the engine's model in memory.",
    )
    speech_queue: Annotated[int, Meta(ge=0, le=100_000)] = row(
        SPEECH, 16, "Streams that may wait for a worker; more are rejected with 429."
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
        "Spoken language; empty: the engine's default.",
        "By default, Whisper detects the language of each utterance, pocketsphinx uses that of its model, and Google "
        "uses en-US.",
    )
    speech_stall_s: Annotated[float, Meta(ge=0.1, le=3600), Duration] = row(
        SPEECH, 30.0, "Time without progress after which a worker is replaced and its stream fails (502)."
    )
    audio_encoding: Encoding = row(
        SPEECH,
        "s16le",
        "Format of raw samples without a declared format; l16 detects the byte order.",
        "For audio over the WebSocket, and for a POST whose Content-Type does not declare it.",
    )
    audio_rate: Annotated[int, Meta(ge=MIN_RATE_HZ, le=MAX_RATE_HZ)] = row(
        SPEECH, 16_000, "Sample rate of raw samples, in hertz."
    )
    audio_channels: Annotated[int, Meta(ge=1, le=MAX_CHANNELS)] = row(
        SPEECH, 1, "Number of interleaved channels of raw samples."
    )
    audio_max_bytes: Annotated[int, Meta(ge=1024, le=2**31), Size] = row(
        SPEECH, 10 * 1024 * 1024, "Largest body of an audio upload; a larger one is rejected with 413.", reloadable=True
    )
    audio_max_duration_s: Annotated[float, Meta(ge=0.1, le=3600), Duration] = row(
        SPEECH,
        60.0,
        "Longest audio of one stream; more is rejected with 413.",
        "Over the WebSocket, the words so far are published, and a new utterance begins.",
        reloadable=True,
    )
    audio_idle_timeout_s: Annotated[float, Meta(ge=0.05, le=3600), Duration] = row(
        SPEECH,
        30.0,
        "Time without a byte after which an upload ends with 408.",
        "An upload also ends with 408 if it takes longer than twice ``audio_max_duration`` plus this time, not "
        "counting the time in which the gateway applies backpressure.",
        reloadable=True,
    )
    audio_streams_per_device: Annotated[int, Meta(ge=1, le=1000)] = row(
        SPEECH, 1, "Concurrent audio streams per device; more are rejected with 429.", reloadable=True
    )
    audio_streams: Annotated[int, Meta(ge=0, le=1_000_000)] = row(
        SPEECH,
        0,
        "Total concurrent audio streams; more are rejected with 429; 0: workers plus queue.",
        reloadable=True,
    )

    # Draining
    drain_grace_s: Annotated[float, Meta(ge=0, le=3600), Duration] = row(
        DRAIN,
        25.0,
        "Total time to drain and stop after SIGTERM.",
        "Keep it below the time after which the supervisor kills the process: systemd's ``TimeoutStopSec``, "
        "Kubernetes' ``terminationGracePeriodSeconds``.",
    )
    drain_delay_s: Annotated[float, Meta(ge=0, le=3600), Duration] = row(
        DRAIN,
        0.0,
        "Time from ready=503 to the first closed connection.",
        "It lets load balancers notice, and is part of ``drain_grace``.",
    )

    # Logging
    log_format: LogFormat = row(
        LOGGING, "text", "Format of the log on standard error; auto: text on a terminal, else json."
    )
    log_level: LogLevel = row(LOGGING, "info", "Lowest level that is logged.", reloadable=True)
    access_log: bool = row(LOGGING, True, "Log one line per HTTP request, never with a token.")

    def __repr__(self) -> str:
        """The settings that differ from the defaults, with secrets hidden."""
        shown = (_shown(setting, getattr(self, setting.attribute)) for setting in non_defaults(self))
        return f"Settings({', '.join(shown)})"

    @property
    def uses_development_key(self) -> bool:
        """Whether neither a secret nor a key is configured."""
        return not self.jwt_secret and not self.jwt_key

    @property
    def has_admin_keys(self) -> bool:
        """Whether admin tokens have keys of their own."""
        return bool(self.admin_jwt_secret or self.admin_jwt_key)

    @property
    def enables_admin(self) -> bool:
        """Whether the admin API is enabled."""
        return self.has_admin_keys or self.uses_development_key

    @property
    def admin_is_on_loopback(self) -> bool:
        """Whether only this machine reaches the admin API, and what else this gateway listens on."""
        return is_loopback(self.host) and (self.admin_port is None or is_loopback(self.admin_host))

    @property
    def has_embedded_broker(self) -> bool:
        """Whether the broker is part of this process."""
        return self.broker == EMBEDDED_BROKER

    @property
    def shares_presence(self) -> bool:
        """Whether other servers may hold devices."""
        return self.presence != "local://"

    @property
    def broker_servers(self) -> tuple[str, ...]:
        """``host:port`` of each Kafka server; empty with another broker."""
        return kafka_servers(self.broker) if self.broker.lower().startswith("kafka://") else ()

    @property
    def buffers(self) -> dict[str, int]:
        """The limit of each part, in bytes: its share of ``buffer_bytes``, unless it has a setting of its own."""
        shares = buffers.split(self.buffer_bytes, embedded=self.has_embedded_broker)
        return shares if self.has_embedded_broker else shares | {"publish": 2 * self.publish_bytes}

    @property
    def publish_bytes(self) -> int:
        """Bytes that may wait to be published before devices are read more slowly; the hard limit is twice as much."""
        return self.publish_queue_bytes or buffers.split(self.buffer_bytes, embedded=False)["publish"] // 2

    @property
    def token_policy(self) -> TokenPolicy:
        """The required claims of a token, and the lifetime of new ones."""
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
        """The format of raw samples without a declared format."""
        return AudioFormat("raw", self.audio_encoding, self.audio_rate, self.audio_channels)

    @property
    def publishes_over_http(self) -> bool:
        """Whether ``POST /api/v1/transcriptions`` is enabled."""
        return self.http_publish == "on" or (self.http_publish == "auto" and self.has_embedded_broker)


TABLE: Final[Mapping[str, Setting]] = MappingProxyType(
    {setting.key: setting for setting in rows_of(Settings, SECTIONS)}
)
"""Every setting by its key, section by section."""


def non_defaults(settings: Settings) -> tuple[Setting, ...]:
    """The rows of the settings that differ from their defaults."""
    return tuple(row for row in TABLE.values() if getattr(settings, row.attribute) != row.default)


def _shown(setting: Setting, value: object) -> str:
    text = "***" if setting.secret else without_user_info(setting.kind.show(value))
    return f"{setting.attribute}={text!r}"
