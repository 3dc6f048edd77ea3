"""Creating the gateway's topics, whichever library asks the brokers. Blocking, for the consumer's thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, TypeAlias

from .kafka_options import KafkaOptions

log = logging.getLogger("cocoa.broker")


class TopicRefusal(NamedTuple):
    """Why a broker has not created a topic.

    :ivar of_settings: it refuses the settings, and may create the topic without them
    """

    of_settings: bool
    text: str


AskBrokers: TypeAlias = Callable[[Collection[str], Mapping[str, str]], dict[str, TopicRefusal]]
"""Asks the brokers to create topics with these settings; returns those that were refused."""


def create_missing(ask: AskBrokers, topics: Collection[str], settings: Mapping[str, str]) -> dict[str, str]:
    """Create topics; return those that were refused, and why."""
    refused = ask(topics, settings)
    # Some clusters have a policy about such settings; a topic with their settings is better than none.
    again = [name for name, refusal in refused.items() if refusal.of_settings]
    if again:
        still = ask(again, {})
        if len(still) < len(again):
            smaller = ",".join(name for name in again if name not in still)
            log.warning("topic settings refused", extra={"topics": smaller})
        refused = {name: refusal for name, refusal in refused.items() if name not in again} | still
    if len(refused) < len(topics):
        log.info("topics created", extra={"topics": ",".join(name for name in topics if name not in refused)})
    return {name: refusal.text for name, refusal in refused.items()}


def settings_of(topic: str, options: KafkaOptions, settings: Mapping[str, str]) -> dict[str, str]:
    """The settings of a topic. The results topic is written by others, so its limit is theirs to set."""
    return {} if topic == options.results_topic else dict(settings)
