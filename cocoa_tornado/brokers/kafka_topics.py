"""Checks at the start of each session that the gateway's topics exist, and creates them if configured.

Blocking, for the consumer's thread; raises KafkaError if the brokers don't answer.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import NamedTuple

from kafka import errors as kafka_errors

from .kafka_clients import MAX_MESSAGE_BYTES, KafkaClients
from .kafka_connections import KafkaClient
from .kafka_failures import AUTH_ERRORS
from .kafka_options import KafkaOptions
from .kafka_reading import TopicMissing

CREATION_PATIENCE_MS = 5_000

log = logging.getLogger("cocoa.broker")


def ensure_topics(clients: KafkaClients, options: KafkaOptions) -> None:
    """Check that the topics exist, and create those that may be created. Raises TopicMissing for the results topic."""
    with clients.administering() as admin:
        described = admin.describe_topics(list(options.topics))
        errors = {topic["name"]: kafka_errors.for_code(topic["error_code"]) for topic in described}
        missing = [name for name, error in errors.items() if error is kafka_errors.UnknownTopicOrPartitionError]
        refused = {name: error.__name__ for name, error in errors.items() if issubclass(error, AUTH_ERRORS)}
        if missing and options.create_topics:
            not_made = _create(admin, options, missing)
            refused |= not_made
            created = [topic for topic in missing if topic not in not_made]
            if created:
                log.info("topics created", extra={"topics": ",".join(created)})
                admin.wait_for_topics(created, timeout_ms=CREATION_PATIENCE_MS)
        elif missing:
            refused |= dict.fromkeys(missing, "it does not exist, and create_topics is off")
    if options.results_topic in refused:
        raise TopicMissing(f"topic {options.results_topic}: {refused[options.results_topic]}")


class _Refusal(NamedTuple):
    error: type[Exception]
    text: str


def _create(admin: KafkaClient, options: KafkaOptions, topics: Collection[str]) -> dict[str, str]:
    """Create topics; return those that were refused, and why."""
    refused = _ask_for(admin, options, topics, {MAX_MESSAGE_BYTES: str(options.max_record_bytes)})
    # Some clusters have a policy about such settings; a topic with their settings is better than none.
    again = [name for name, refusal in refused.items() if refusal.error in _SETTING_REFUSED]
    if again:
        still = _ask_for(admin, options, again, {})
        if len(still) < len(again):
            smaller = ",".join(name for name in again if name not in still)
            log.warning("topic settings refused", extra={"topics": smaller})
        refused = {name: refusal for name, refusal in refused.items() if name not in again} | still
    return {name: refusal.text for name, refusal in refused.items()}


_SETTING_REFUSED = (kafka_errors.InvalidConfigurationError, kafka_errors.PolicyViolationError)


def _ask_for(
    admin: KafkaClient, options: KafkaOptions, topics: Collection[str], settings: dict[str, str]
) -> dict[str, _Refusal]:
    wanted = {
        topic: {
            "num_partitions": options.partitions,
            "replication_factor": options.replication,
            # The results topic is written by others, so its limit is theirs to set.
            "configs": {} if topic == options.results_topic else settings,
        }
        for topic in topics
    }
    refused = {}
    for topic in admin.create_topics(wanted, raise_errors=False)["topics"]:
        error = kafka_errors.for_code(topic["error_code"])
        if error not in (kafka_errors.NoError, kafka_errors.TopicAlreadyExistsError):
            refused[topic["name"]] = _Refusal(error, topic.get("error_message") or error.__name__)
    return refused
