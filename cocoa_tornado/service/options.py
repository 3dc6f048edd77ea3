"""From settings to the options of each part. Pure: nothing is opened here."""

from __future__ import annotations

from pathlib import Path

from ..brokers.kafka_options import KafkaOptions, record_bytes_for
from ..connection.limits import DeviceLimits
from ..connection.making_room import OutboxLimits
from ..presence.grants import SlotLimits
from ..presence.membership import Timing
from ..rules.box import BoxLimits
from ..rules.buffers import split
from ..rules.crowd import LOOPBACK
from ..rules.rate import RateLimit
from ..rules.seen import WINDOW
from ..rules.upload import AudioLimits
from ..settings.table import MAILBOX_OFF, Settings
from ..transcriber import SpeechLimits
from ..web.listener import ListenerOptions


def box_limits(settings: Settings) -> BoxLimits:
    return BoxLimits(
        settings.mailbox_max_messages, settings.mailbox_max_bytes, settings.mailbox_ttl_s, settings.member_ttl_s
    )


def slot_limits(settings: Settings) -> SlotLimits:
    return SlotLimits(
        per_device=settings.connections_per_device,
        total=settings.max_connections,
        policy=settings.duplicate_policy,
        challenge_s=settings.duplicate_challenge_s,
    )


def device_limits(settings: Settings) -> DeviceLimits:
    return DeviceLimits(
        max_message_bytes=settings.max_message_bytes,
        write_wait_s=settings.write_wait_s,
        outbox=OutboxLimits(settings.outbox_max_messages, settings.outbox_max_bytes),
        inbound=RateLimit(settings.inbound_rate, settings.inbound_burst),
    )


def speech_limits(settings: Settings) -> SpeechLimits:
    return SpeechLimits(
        streams_per_device=settings.audio_streams_per_device,
        streams=settings.audio_streams,
        max_audio_s=settings.audio_max_duration_s,
    )


def audio_limits(settings: Settings) -> AudioLimits:
    return AudioLimits(
        raw=settings.raw_audio,
        max_bytes=settings.audio_max_bytes,
        idle_timeout_s=settings.audio_idle_timeout_s,
        # Audio arrives at the speed of speech, or at half of it over a bad network.
        upload_timeout_s=2 * settings.audio_max_duration_s + settings.audio_idle_timeout_s,
    )


def listener_options(settings: Settings) -> ListenerOptions:
    return ListenerOptions(
        max_pending=settings.max_pending_connections,
        max_per_address=settings.max_connections_per_address,
        unlimited=(*LOOPBACK, *settings.trusted_proxies),
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        write_wait_s=settings.write_wait_s,
    )


def membership_timing(settings: Settings) -> Timing:
    """The timing of a server that shares presence with others."""
    is_strict = settings.presence_mode == "strict"
    return Timing(
        fence_s=settings.presence_fence_s,
        freeze_s=settings.presence_freeze_s,
        cut_s=settings.presence_freeze_s if is_strict else settings.presence_cut_s,
    )


def kafka_options(settings: Settings) -> KafkaOptions:
    """The Kafka adapter's own options; an empty setting is an absent option."""
    shares = split(settings.buffer_bytes, embedded=False)
    return KafkaOptions(
        bootstrap=settings.broker_servers,
        group=settings.kafka_group,
        group_protocol=settings.kafka_group_protocol,
        # With presence local:// no other gateway knows which devices this one holds.
        sole_reader=not settings.shares_presence,
        workers=settings.workers,
        client_id=settings.kafka_client_id,
        results_topic=settings.kafka_results_topic,
        messages_topic=settings.kafka_messages_topic,
        quarantine_topic=settings.kafka_quarantine_topic,
        create_topics=settings.kafka_create_topics,
        partitions=settings.kafka_partitions,
        replication=settings.kafka_replication,
        security_protocol=settings.kafka_security_protocol,
        ssl_ca=_path_or_none(settings.kafka_ssl_ca),
        ssl_cert=_path_or_none(settings.kafka_ssl_cert),
        ssl_key=_path_or_none(settings.kafka_ssl_key),
        ssl_key_password=settings.kafka_ssl_key_password or None,
        check_hostname=settings.kafka_ssl_check_hostname,
        sasl_mechanism=settings.kafka_sasl_mechanism or None,
        sasl_username=settings.kafka_sasl_username or None,
        sasl_password=settings.kafka_sasl_password or None,
        oauth_token_url=settings.kafka_oauth_token_url or None,
        oauth_client_id=settings.kafka_oauth_client_id or None,
        oauth_client_secret=settings.kafka_oauth_client_secret or None,
        oauth_scope=settings.kafka_oauth_scope or None,
        max_record_bytes=record_bytes_for(settings.max_message_bytes),
        max_poll_records=settings.kafka_max_poll_records,
        high_water=settings.high_water,
        low_water=settings.low_water,
        # The mailbox must still remember all records that can be read again after a crash, including one full poll.
        max_uncommitted=0 if settings.mailbox == MAILBOX_OFF else WINDOW // 2,
        queue_records=settings.publish_queue_records,
        queue_bytes=settings.publish_bytes,
        high_water_bytes=shares["handoff"],
        fetch_bytes=shares["fetch"],
        batch_bytes=shares["batch"],
    )


def _path_or_none(path: Path | None) -> str | None:
    return None if path is None else str(path)
