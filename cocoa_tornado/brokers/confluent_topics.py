"""Checks at the start of each session that the gateway's topics exist, and creates them if configured.

Blocking, for the consumer's thread; raises KafkaException if the brokers don't answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from .confluent_clients import CALL_S, MAX_MESSAGE_BYTES, ConfluentClients, code_of
from .kafka_options import KafkaOptions
from .kafka_reading import TopicMissing

CREATION_PATIENCE_S = 5.0

log = logging.getLogger("cocoa.broker")


def ensure_topics(clients: ConfluentClients, options: KafkaOptions) -> None:
    """Check that the topics exist, and create those that may be created. Raises TopicMissing for the results topic."""
    admin, trouble = clients.admin()
    try:
        refused = _ensure(admin, options)
    except KafkaException as error:
        admin.poll(0)  # run the callbacks for connection errors
        raise trouble.instead_of(error) from error
    if options.results_topic in refused:
        raise TopicMissing(f"topic {options.results_topic}: {refused[options.results_topic]}")


def _ensure(admin: AdminClient, options: KafkaOptions) -> dict[str, str]:
    """Return the topics that are unavailable, and why."""
    errors = {topic: _error_of(admin, topic) for topic in options.topics}
    missing = [topic for topic, error in errors.items() if error is not None and _is_unknown(error)]
    refused = {
        topic: error.name()
        for topic, error in errors.items()
        if error is not None and error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
    }
    if missing and options.create_topics:
        not_made = _create(admin, options, missing)
        refused |= not_made
        created = [topic for topic in missing if topic not in not_made]
        if created:
            log.info("topics created", extra={"topics": ",".join(created)})
            _await(admin, created)
    elif missing:
        refused |= dict.fromkeys(missing, "it does not exist, and create_topics is off")
    return refused


def _error_of(admin: AdminClient, topic: str) -> KafkaError | None:
    return admin.list_topics(topic, timeout=CALL_S).topics[topic].error


def _is_unknown(error: KafkaError) -> bool:
    return error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART


def _await(admin: AdminClient, topics: Collection[str]) -> None:
    """Wait, with a timeout: brokers learn of a topic some time after the controller has created it."""
    deadline = time.monotonic() + CREATION_PATIENCE_S
    while time.monotonic() < deadline:
        if all(_error_of(admin, topic) is None for topic in topics):
            return
        time.sleep(0.05)


class _Refusal(NamedTuple):
    code: int | None
    text: str


_SETTING_REFUSED = (KafkaError.INVALID_CONFIG, KafkaError.POLICY_VIOLATION)


def _create(admin: AdminClient, options: KafkaOptions, topics: Collection[str]) -> dict[str, str]:
    """Create topics; return those that were refused, and why."""
    refused = _ask_for(admin, options, topics, {MAX_MESSAGE_BYTES: str(options.max_record_bytes)})
    # Some clusters have a policy about such settings; a topic with their settings is better than none.
    again = [name for name, refusal in refused.items() if refusal.code in _SETTING_REFUSED]
    if again:
        still = _ask_for(admin, options, again, {})
        if len(still) < len(again):
            smaller = ",".join(name for name in again if name not in still)
            log.warning("topic settings refused", extra={"topics": smaller})
        refused = {name: refusal for name, refusal in refused.items() if name not in again} | still
    return {name: refusal.text for name, refusal in refused.items()}


def _ask_for(
    admin: AdminClient, options: KafkaOptions, topics: Collection[str], settings: dict[str, str]
) -> dict[str, _Refusal]:
    wanted = [
        NewTopic(
            topic,
            num_partitions=options.partitions,
            replication_factor=options.replication,
            # The results topic is written by others, so its limit is theirs to set.
            config={} if topic == options.results_topic else settings,
        )
        for topic in topics
    ]
    refused = {}
    for topic, answer in admin.create_topics(wanted, request_timeout=CALL_S).items():
        try:
            answer.result(2 * CALL_S)
        except KafkaException as error:
            if code_of(error) == KafkaError._TIMED_OUT:
                raise  # no broker has refused it; none has answered
            if code_of(error) != KafkaError.TOPIC_ALREADY_EXISTS:
                refused[topic] = _Refusal(code_of(error), error.args[0].str() or error.args[0].name())
    return refused
