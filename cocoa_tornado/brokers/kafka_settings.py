"""The settings of the Kafka adapters: their URL, their rows of the table, and the rules between them."""

# ruff: noqa: RUF009
# row() is dataclasses.field() with the table's columns; it creates no default that two objects could share.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Final, Literal, get_args

from msgspec import Meta

from ..adapters import Library, Scheme
from ..rules.addresses import kafka_servers
from ..settings.domain import Line, OptionalFile, SecretText, Topic, WebUrl
from ..settings.rows import Fault, row, together
from ..settings.types import WholeOrDefault

KAFKA: Final = "Kafka"
KAFKA_SECURITY: Final = "Kafka security"
KAFKA_SECTIONS: Final = (KAFKA, KAFKA_SECURITY)

CONFLUENT: Final = Library(
    needed_by="confluent",
    modules=("confluent_kafka",),
    extra="librdkafka",
    instead="kafka-python",
    name="confluent-kafka",
)
CONSUMER_PROTOCOL: Final = Library(
    needed_by="consumer",
    modules=("confluent_kafka",),
    extra="librdkafka",
    instead="classic",
    name="confluent-kafka",
)
GroupProtocol = Literal["classic", "consumer"]
KafkaClient = Literal["auto", "kafka-python", "confluent"]
SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]


def _check(url: str) -> str:
    kafka_servers(url)
    return url


KAFKA_URL: Final = Scheme(
    names=("kafka",),
    form="kafka://host:port[,host:port...]",
    check=_check,
    no_user="credentials belong to kafka_sasl_username and kafka_sasl_password",
)


@dataclass(frozen=True, kw_only=True, repr=False)
class KafkaSettings:
    """The Kafka part of ``Settings``. The embedded broker uses the topics too."""

    kafka_group: Annotated[
        str, Meta(pattern=r"\A[^\s\x00-\x1f\x7f-\x9f]{1,255}\Z", description="1 to 255 characters without whitespace")
    ] = row(
        KAFKA,
        "cocoa-gateway",
        "Consumer group of this gateway, or of the servers that share presence.",
        "With presence ``local://``, the gateway is not ready while another member of the group reads the same topic.",
    )
    kafka_group_protocol: Annotated[GroupProtocol, {"consumer": CONSUMER_PROTOCOL}] = row(
        KAFKA,
        "classic",
        "How several servers share out the partitions: classic or consumer.",
        "With ``classic`` all servers stop reading whenever one joins or leaves. With ``consumer`` (KIP-848) only the "
        "partitions that move are interrupted; it needs Kafka 4.0 or later, confluent-kafka, and presence in Redis. "
        "Servers of both kinds may share a group, so a rolling restart changes it.",
    )
    kafka_client_id: Annotated[
        str, Meta(pattern=r"\A[A-Za-z0-9._-]{1,249}\Z", description="1 to 249 of a-z A-Z 0-9 . _ -")
    ] = row(KAFKA, "cocoa-gateway", "Name of this client in the broker's logs and quotas.")
    kafka_client: Annotated[KafkaClient, {"confluent": CONFLUENT}] = row(
        KAFKA,
        "auto",
        "Library that reads from Kafka.",
        "``confluent`` is confluent-kafka (librdkafka), which uses less CPU time and needs the extra ``librdkafka``. "
        "``kafka-python`` is always installed, and always publishes. ``auto`` uses confluent-kafka if it is installed.",
    )
    kafka_results_topic: Topic = row(KAFKA, "transcription.results", "Topic of the records for devices.")
    kafka_messages_topic: Topic = row(KAFKA, "device.messages", "Topic of the messages from devices.")
    kafka_quarantine_topic: Topic = row(
        KAFKA, "transcription.results.quarantine", "Topic for records that cannot be decoded or name no device."
    )
    kafka_create_topics: bool = row(KAFKA, True, "Whether to create missing topics.")
    kafka_partitions: Annotated[int, Meta(ge=1, le=100_000), WholeOrDefault] = row(
        KAFKA, -1, "Partitions of created topics; -1: the broker's default."
    )
    kafka_replication: Annotated[int, Meta(ge=1, le=32_767), WholeOrDefault] = row(
        KAFKA, -1, "Replicas of created topics; -1: the broker's default."
    )
    kafka_max_poll_records: Annotated[int, Meta(ge=1, le=100_000)] = row(KAFKA, 500, "Most records per poll.")
    kafka_security_protocol: SecurityProtocol = row(KAFKA_SECURITY, "PLAINTEXT", "Security protocol of the brokers.")
    kafka_ssl_ca: OptionalFile = row(
        KAFKA_SECURITY, None, "CA certificates (PEM) for the brokers; empty: the system's."
    )
    kafka_ssl_cert: OptionalFile = row(
        KAFKA_SECURITY, None, "Client certificate (PEM) for the brokers.", "Requires ``kafka_ssl_key``."
    )
    kafka_ssl_key: OptionalFile = row(KAFKA_SECURITY, None, "Private key (PEM) of the client certificate.")
    kafka_ssl_key_password: SecretText = row(KAFKA_SECURITY, "", "Password of the private key, if it is encrypted.")
    kafka_ssl_check_hostname: bool = row(
        KAFKA_SECURITY, True, "Whether to check that a broker's certificate names its host."
    )
    kafka_sasl_mechanism: SaslMechanism = row(
        KAFKA_SECURITY, "", "SASL mechanism; required with SASL_PLAINTEXT and SASL_SSL."
    )
    kafka_sasl_username: Line = row(KAFKA_SECURITY, "", "User for PLAIN and SCRAM.")
    kafka_sasl_password: SecretText = row(KAFKA_SECURITY, "", "Password for PLAIN and SCRAM.")
    kafka_oauth_token_url: WebUrl = row(
        KAFKA_SECURITY, "", "Token endpoint for OAUTHBEARER (client credentials grant)."
    )
    kafka_oauth_client_id: Line = row(KAFKA_SECURITY, "", "Client id for OAUTHBEARER.")
    kafka_oauth_client_secret: SecretText = row(KAFKA_SECURITY, "", "Client secret for OAUTHBEARER.")
    kafka_oauth_scope: Line = row(KAFKA_SECURITY, "", "Requested scope; empty: none.")


def faults(settings: KafkaSettings) -> Iterator[Fault]:
    """The violated rules, in the order of reporting."""
    yield from _topics(settings)
    yield from _protocol(settings)
    yield from together(settings, "kafka_ssl_cert", "kafka_ssl_key")
    yield from _tls(settings)
    yield from _sasl(settings)


def _topics(settings: KafkaSettings) -> Iterator[Fault]:
    keys = ("kafka_results_topic", "kafka_messages_topic", "kafka_quarantine_topic")
    names = {key: getattr(settings, key) for key in keys}
    for other, key in combinations(keys, 2):
        if names[key] == names[other]:
            yield Fault((key, other), f"{other} is {names[key]!r} too", "three different topics")


def _protocol(settings: KafkaSettings) -> Iterator[Fault]:
    if settings.kafka_group_protocol == "consumer" and settings.kafka_client == "kafka-python":
        problem = "kafka-python lacks kafka_group_protocol consumer"
        yield Fault(("kafka_group_protocol", "kafka_client"), problem, "kafka_client confluent, or classic")


def _tls(settings: KafkaSettings) -> Iterator[Fault]:
    keys = ("kafka_ssl_ca", "kafka_ssl_cert", "kafka_ssl_key", "kafka_ssl_key_password")
    given = [key for key in keys if getattr(settings, key)]
    if given and "SSL" not in settings.kafka_security_protocol:
        problem = f"it has no effect with kafka_security_protocol {settings.kafka_security_protocol}"
        yield Fault((given[0],), problem, "kafka_security_protocol SSL or SASL_SSL")
    if settings.kafka_ssl_key_password and not settings.kafka_ssl_key:
        yield Fault(("kafka_ssl_key_password",), "kafka_ssl_key is missing", "both together, or neither")


def _sasl(settings: KafkaSettings) -> Iterator[Fault]:
    """Each mechanism has the settings that it requires, and none without effect is set."""
    protocol, mechanism = settings.kafka_security_protocol, settings.kafka_sasl_mechanism
    password = ("kafka_sasl_username", "kafka_sasl_password")
    grant = ("kafka_oauth_token_url", "kafka_oauth_client_id", "kafka_oauth_client_secret")
    optional: tuple[str, ...] = ("kafka_oauth_scope",)
    if protocol.startswith("SASL") and not mechanism:
        allowed = ", ".join(filter(None, get_args(SaslMechanism)))
        yield Fault(("kafka_sasl_mechanism", "kafka_security_protocol"), f"{protocol} needs a SASL mechanism", allowed)
    if mechanism and not protocol.startswith("SASL"):
        yield Fault(
            ("kafka_sasl_mechanism", "kafka_security_protocol"),
            f"{mechanism} has no effect with kafka_security_protocol {protocol}",
            "kafka_security_protocol SASL_SSL or SASL_PLAINTEXT",
        )
    needed = () if not mechanism else grant if mechanism == "OAUTHBEARER" else password
    for key in needed:
        if not getattr(settings, key):
            yield Fault(
                ("kafka_sasl_mechanism",), f"{mechanism} needs {key}, which is not set", " and ".join(needed) + " set"
            )
    for key in (*password, *grant, *optional):
        belongs = key in needed or (key in optional and needed == grant)
        if getattr(settings, key) and not belongs:
            users = "OAUTHBEARER" if "oauth" in key else "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"
            now = mechanism or "no kafka_sasl_mechanism"
            yield Fault((key,), f"it has no effect with {now}", f"kafka_sasl_mechanism {users}")
