"""The options of the Kafka adapters, as plain values. The settings fill them in."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from ..errors import BrokerError

MIB = 1024 * 1024
ENVELOPE_BYTES = 64 * 1024  # for the other fields, the key, the headers and Kafka's own framing
# A broker hangs up on a longer request (socket.request.max.bytes), and the record would be retried indefinitely.
MAX_REQUEST_BYTES = 100 * 1024 * 1024 - ENVELOPE_BYTES


def record_bytes_for(message_bytes: int) -> int:
    """The largest record that a device's message of this size can become: JSON spells some bytes with six."""
    return min(6 * message_bytes + ENVELOPE_BYTES, MAX_REQUEST_BYTES)


@dataclass(frozen=True, kw_only=True, slots=True)
class KafkaOptions:
    """Options of :class:`~cocoa_tornado.brokers.kafka.KafkaBroker`; ``repr`` hides the secrets.

    The settings are where values are checked, alone and together (``kafka_settings.py``, ``settings/checks.py``).

    :ivar bootstrap: ``host:port`` of one or more brokers
    :ivar group_protocol: ``classic`` or ``consumer``; kafka-python has only the first
    :ivar sole_reader: read only while no other member of the group reads the results topic: only this gateway has the
        devices, so they would miss what another member reads
    :ivar create_topics: create missing topics; otherwise, wait for them
    :ivar partitions: of a created topic; -1: the broker's default
    :ivar replication: of a created topic; -1: the broker's default
    :ivar ssl_ca: PEM file of the authorities to trust; None: those of the system
    :ivar ssl_cert: PEM file of the client's certificate chain, for mutual TLS
    :ivar oauth_token_url: where client credentials are exchanged for an access token (OAUTHBEARER)
    :ivar high_water: records in flight (handed over and not done) at which the partitions pause
    :ivar low_water: records in flight below which they resume
    :ivar high_water_bytes: the same in bytes; they resume below a quarter of it
    :ivar fetch_bytes: while this much is fetched and unread, fetching pauses
    :ivar batch_bytes: the largest decompressed batch (kafka-python); a larger one is skipped as unreadable
    :ivar workers: on this machine that read; each of them gets fewer records in the same time
    :ivar max_uncommitted: offsets of a partition that may be done and not committed; above it, reading pauses until the
        broker has taken a commit; 0: unlimited
    :ivar queue_records: size of the publish queue, from which :meth:`can_write` is False; at twice as many, publishing
        fails
    :ivar queue_bytes: the same in bytes of keys, values and headers
    :ivar max_record_bytes: the largest record of a device's message. Created topics for the gateway's own records allow
        it; the results topic, which others write, keeps the brokers' default
    :ivar max_request_bytes: the largest record that is sent: a quarantined record can be as large as the results topic
        allows, or ``max_record_bytes`` if that is larger. Brokers may refuse smaller ones
    :ivar probe_interval_s: how often a consumer checks that the brokers answer, and the topic's state
    :ivar standstill_s: how long a partition's last stable offset must stand still before it is logged
    """

    bootstrap: tuple[str, ...]
    group: str = "cocoa-gateway"
    group_protocol: str = "classic"
    client_id: str = "cocoa-gateway"
    results_topic: str = "transcription.results"
    messages_topic: str = "device.messages"
    quarantine_topic: str = "transcription.results.quarantine"
    sole_reader: bool = False
    workers: int = 1
    create_topics: bool = True
    partitions: int = -1
    replication: int = -1

    security_protocol: str = "PLAINTEXT"
    ssl_ca: str | None = None
    ssl_cert: str | None = None
    ssl_key: str | None = None
    ssl_key_password: str | None = field(default=None, repr=False)
    check_hostname: bool = True
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    oauth_token_url: str | None = None
    oauth_client_id: str | None = None
    oauth_client_secret: str | None = field(default=None, repr=False)
    oauth_scope: str | None = None

    max_poll_records: int = 500
    high_water: int = 10_000
    low_water: int = 2_000
    high_water_bytes: int = 24 * MIB
    fetch_bytes: int = 16 * MIB
    batch_bytes: int = 24 * MIB
    commit_interval_s: float = 1.0
    max_uncommitted: int = 0
    queue_records: int = 10_000
    queue_bytes: int = 16 * MIB
    max_record_bytes: int = record_bytes_for(512 * 1024)
    max_request_bytes: int = 8 * 1024 * 1024
    # How long a killed process stays in the group, and its successor waits outside (rules/sole_reader). With the group
    # protocol ``consumer``, the brokers decide.
    session_timeout_s: float = 12.0
    metadata_max_age_s: float = 30.0
    probe_interval_s: float = 2.0
    standstill_s: float = 10.0

    @property
    def largest_request_bytes(self) -> int:
        """Of ``max_request_bytes`` and ``max_record_bytes``."""
        return max(self.max_request_bytes, self.max_record_bytes)

    @property
    def poll_bytes(self) -> int:
        """The most that one poll hands over, if it is more than one record."""
        return max(1, self.high_water_bytes // 8)

    @property
    def uses_sasl(self) -> bool:
        return self.security_protocol.startswith("SASL_")

    @property
    def uses_tls(self) -> bool:
        return self.security_protocol.endswith("SSL")

    @property
    def topics(self) -> tuple[str, str, str]:
        return (self.results_topic, self.messages_topic, self.quarantine_topic)

    def tls_context(self) -> ssl.SSLContext | None:
        """The TLS context for these options; None without TLS.

        Raises BrokerError if a file cannot be used; the message names the file, never its content.
        """
        if not self.uses_tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ssl_ca)
        except (OSError, ssl.SSLError) as error:
            raise BrokerError(f"cannot use the CA file {self.ssl_ca}: {error}") from error
        context.check_hostname = self.check_hostname
        if self.ssl_cert is not None:
            try:
                # Without a callback, OpenSSL asks for a password on the terminal.
                context.load_cert_chain(self.ssl_cert, self.ssl_key, lambda: self.ssl_key_password or "")
            except (OSError, ValueError) as error:
                # ssl.SSLError is an OSError. ValueError: the password is longer than OpenSSL's buffer.
                raise BrokerError(f"cannot use the certificate {self.ssl_cert} and its key: {error}") from error
        return context
