"""Checks at the start of each session that the gateway's topics exist, and creates them if configured.

Blocking, for the consumer's thread; raises KafkaError if the brokers don't answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

from kafka import errors as kafka_errors

from .kafka_clients import MAX_MESSAGE_BYTES, KafkaClients
from .kafka_connections import KafkaClient
from .kafka_failures import AUTH_ERRORS
from .kafka_options import KafkaOptions
from .kafka_reading import TopicMissing
from .topic_creation import TopicRefusal, create_missing, settings_of

CREATION_PATIENCE_MS = 5_000


def ensure_topics(clients: KafkaClients, options: KafkaOptions) -> None:
    """Check that the topics exist, and create those that may be created. Raises TopicMissing for the results topic."""
    with clients.administering() as admin:
        described = admin.describe_topics(list(options.topics))
        errors = {topic["name"]: kafka_errors.for_code(topic["error_code"]) for topic in described}
        missing = [name for name, error in errors.items() if error is kafka_errors.UnknownTopicOrPartitionError]
        refused = {name: error.__name__ for name, error in errors.items() if issubclass(error, AUTH_ERRORS)}
        if missing and options.create_topics:
            limits = {MAX_MESSAGE_BYTES: str(options.max_record_bytes)}
            not_made = create_missing(partial(_ask_for, admin, options), missing, limits)
            refused |= not_made
            created = [topic for topic in missing if topic not in not_made]
            if created:
                admin.wait_for_topics(created, timeout_ms=CREATION_PATIENCE_MS)
        elif missing:
            refused |= dict.fromkeys(missing, "it does not exist, and create_topics is off")
    if options.results_topic in refused:
        raise TopicMissing(f"topic {options.results_topic}: {refused[options.results_topic]}")


_SETTING_REFUSED = (kafka_errors.InvalidConfigurationError, kafka_errors.PolicyViolationError)


def _ask_for(
    admin: KafkaClient, options: KafkaOptions, topics: Collection[str], settings: Mapping[str, str]
) -> dict[str, TopicRefusal]:
    wanted = {
        topic: {
            "num_partitions": options.partitions,
            "replication_factor": options.replication,
            "configs": settings_of(topic, options, settings),
        }
        for topic in topics
    }
    refused = {}
    for topic in admin.create_topics(wanted, raise_errors=False)["topics"]:
        error = kafka_errors.for_code(topic["error_code"])
        if error not in (kafka_errors.NoError, kafka_errors.TopicAlreadyExistsError):
            text = topic.get("error_message") or error.__name__
            refused[topic["name"]] = TopicRefusal(error in _SETTING_REFUSED, text)
    return refused
