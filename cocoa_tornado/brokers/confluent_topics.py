"""Checks at the start of each session that the gateway's topics exist, and creates them if configured.

Blocking, for the consumer's thread; raises KafkaException if the brokers don't answer.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from functools import partial

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from .confluent_clients import CALL_S, MAX_MESSAGE_BYTES, ConfluentClients, code_of
from .kafka_options import KafkaOptions
from .kafka_reading import TopicMissing
from .topic_creation import TopicRefusal, create_missing, settings_of

CREATION_PATIENCE_S = 5.0


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
        limits = {MAX_MESSAGE_BYTES: str(options.max_record_bytes)}
        not_made = create_missing(partial(_ask_for, admin, options), missing, limits)
        refused |= not_made
        _await(admin, [topic for topic in missing if topic not in not_made])
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


_SETTING_REFUSED = (KafkaError.INVALID_CONFIG, KafkaError.POLICY_VIOLATION)


def _ask_for(
    admin: AdminClient, options: KafkaOptions, topics: Collection[str], settings: Mapping[str, str]
) -> dict[str, TopicRefusal]:
    wanted = [
        NewTopic(
            topic,
            num_partitions=options.partitions,
            replication_factor=options.replication,
            config=settings_of(topic, options, settings),
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
                text = error.args[0].str() or error.args[0].name()
                refused[topic] = TopicRefusal(code_of(error) in _SETTING_REFUSED, text)
    return refused
